"""Requests that the real clients of other services sent are answered as these clients need.

`real_clients.py` records them; those of Open WebUI and Dify are written after their public code.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from service_process import ServiceProcess

FOLDER = Path(__file__).parent / "recorded_clients"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
KEY = "k" * 20


@pytest.fixture(scope="module")
def service(start, tmp_path_factory):
    with ExitStack() as stack:
        yield start(stack, tmp_path_factory.mktemp("recorded"), api_keys=(KEY,))


@pytest.fixture(scope="module")
def image(encoded):
    return "data:image/png;base64," + base64.b64encode(encoded[0][0].read_bytes()).decode()


def filled(value, replacements):
    """Return recorded JSON with the values of this run for its placeholders."""
    text = json.dumps(value)
    for placeholder, own in replacements.items():
        text = text.replace(placeholder, own)
    return json.loads(text)


def check(path, body, answer, ids):
    """Check that an answer has what the client of its request reads."""
    if path == "/v1/models":
        (model,) = answer["data"]
        assert model["object"] == "model"
        return
    if path.startswith("/v1/models/"):
        assert answer["object"] == "model"
        return
    if path == "/v1/embeddings":
        inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
        assert [each["index"] for each in answer["data"]] == [*range(len(inputs))]
        for each in answer["data"]:
            vector = each["embedding"]
            if body.get("encoding_format") == "base64":
                vector = np.frombuffer(base64.b64decode(vector), "<f4")
            assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        assert answer["usage"]["total_tokens"] >= answer["usage"]["prompt_tokens"] > 0
        return
    documents = body.get("documents") or body["texts"]
    expected = min(body.get("top_n") or len(documents), len(documents))
    results = answer if "texts" in body else answer["results"]
    scores = [each["score" if "texts" in body else "relevance_score"] for each in results]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert len({each["index"] for each in results}) == len(results) == expected
    if body.get("return_text"):
        assert [each["text"] for each in results] == [documents[each["index"]] for each in results]
    if "documents" in body:
        assert answer["id"]
        assert answer["usage"]["total_tokens"] > 0
        for each in results:
            sent = documents[each["index"]]
            sent = sent if isinstance(sent, str) else sent.get("text", "")
            if body.get("return_documents"):
                assert each["document"]["text"] == ("" if sent.startswith("data:") else sent)


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_client_is_answered(service, image, name):
    model = service.get("/v1/models", headers={"X-API-Key": KEY}).json()["data"][0]["id"]
    values = {"{key}": KEY, "{image}": image, "{model}": model}
    values |= {f"{{id:{number}}}": service.ids[number] for number in range(3)}
    recorded = json.loads((FOLDER / f"{name}.json").read_text())
    assert recorded["client"]
    assert recorded["version"]
    for request in filled(recorded["requests"], values):
        body = request["body"]
        answer = service.request(
            request["method"], request["path"], json=body, headers=request["headers"]
        )
        if body and body.get("documents", body.get("texts")) == ["Washington is the capital."]:
            assert answer.status_code == 400
            assert "scores texts against images" in answer.json()["detail"]
        else:
            assert answer.status_code == 200, answer.text
            check(request["path"], body, answer.json(), service.ids)


def test_the_key_is_asked_for_on_every_path(service):
    for name in NAMES:
        recorded = json.loads((FOLDER / f"{name}.json").read_text())
        for request in recorded["requests"]:
            answer = service.request(request["method"], request["path"], json=request["body"])
            assert answer.status_code == 401
            assert "key" in answer.json()["detail"]


@pytest.mark.slow
def test_the_installed_clients_work(start, tmp_path, tiny_folder, encoded):
    with ExitStack() as stack:
        start(stack, tmp_path)
    service = ServiceProcess(
        "--index", tmp_path / "index", "--model", tiny_folder, "--images", tmp_path / "pictures",
        environment={"EDJE_QDRANT_SERVICE_KEY": KEY},
    )  # fmt: skip
    service.wait()
    paths, ids, _ = encoded
    script = Path(__file__).parent / "real_clients.py"
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", script, service.url, "--image", paths[0], "--ids",
             *ids[:3]],
            env={**os.environ, "EDJE_QDRANT_SERVICE_KEY": KEY}, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
    finally:
        service.end()
    if done.returncode == 2:
        pytest.skip("no client of another service is installed")
    assert done.returncode == 0, done.stdout + done.stderr
