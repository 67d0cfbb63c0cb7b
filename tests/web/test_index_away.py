"""A service over a server that is killed, paused and started again, or loses its collection."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from index_stand_in import StandIn
from PIL import Image
from qdrant_client import QdrantClient
from server_process import ServerProcess
from service_process import ServiceProcess

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import EngineUnavailableError, RateLimitedError
from edje_qdrant.model import EDJEModel
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.types import ImageEncoding
from edje_qdrant.web import availability
from edje_qdrant.web.app import create_app
from edje_qdrant.web.settings import ServiceSettings

Encoded = tuple[list[Path], list[str], ImageEncoding]
GONE = "CollectionNotFoundError"
AWAY = "EngineUnavailableError"

# Routes that do without the index.
WITHOUT = {
    "/healthz", "/readyz", "/metrics", "/v1/embeddings", "/v1/models", "/v1/models/{model}",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("away")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(folder / "data")
    yield server
    server.end()


def fill(url: str, name: str, model: EDJEModel, encoded: Encoded) -> None:
    paths, ids, encoding = encoded
    payloads = [{"path": str(path), "page": n} for n, path in enumerate(paths)]
    with ImageCollection.create(url, name, model.contract()) as collection:
        collection.add(ids, encoding, payloads)


@pytest.fixture(scope="module")
def filled(server: ServerProcess, tiny_model: EDJEModel, encoded: Encoded) -> None:
    fill(server.url, "images", tiny_model, encoded)


@pytest.fixture
def serve(tiny_model: EDJEModel, encoded: Encoded) -> Iterator[Callable[..., TestClient]]:
    with ExitStack() as stack:

        def started(url: str, name: str = "images", **options: Any) -> TestClient:
            retriever = TwoStageRetriever.open(url, name, model=tiny_model, **options)
            settings = ServiceSettings(images=encoded[0][0].parent, ingest=True)
            app = create_app(retriever, settings)
            return stack.enter_context(TestClient(app, raise_server_exceptions=False))

        yield started
    shutil.rmtree(encoded[0][0].parent / "uploads", ignore_errors=True)


def requests_of(encoded: Encoded, cursor: str) -> dict[str, dict[str, Any]]:
    """Return route -> the request of every route that needs the index."""
    paths, ids, _ = encoded
    picture = paths[0].read_bytes()
    text = {"text": "a red square"}
    rerank = {"json": {"query": "a red square", "documents": ids[:3]}}
    return {
        "/v1/search": {"json": text},
        "/v1/search/next": {"json": {"cursor": cursor}},
        "/v1/search/image": {"files": {"file": ("a.png", picture)}},
        "/v1/recommend": {"json": {"liked": [ids[0]]}},
        "/v1/rerank": rerank,
        "/v2/rerank": rerank,
        "/rerank": rerank,
        "/v1/explain": {"json": {**text, "image_id": ids[0]}},
        "/v1/ingest": {"files": {"files": ("a.png", picture)}},
        "/v1/images": {},
        "/v1/images/{image_id}": {},
        "/v1/images/{image_id}/file": {},
        "/v1/images/{image_id}/thumbnail": {},
        "/v1/images/{image_id}/source": {},
        "/v1/images/zip": {"json": {"image_ids": ids[:2]}},
        "/v1/fields": {},
        "/v1/fields/values": {"params": {"field": "page"}},
        "/v1/filter/check": {"json": {"where": ["page=1"]}},
        "/v1/suggestions": {},
        "/v1/collection": {},
    }


def ask_all(client: TestClient, encoded: Encoded, cursor: str) -> dict[str, httpx.Response]:
    wanted = requests_of(encoded, cursor)
    methods = {path: [*of] for path, of in client.get("/openapi.json").json()["paths"].items()}
    assert set(wanted) == set(methods) - WITHOUT  # a new route belongs to one of them
    return {
        path: client.request(methods[path][0], path.format(image_id=encoded[1][0]), **request)
        for path, request in wanted.items()
    }


def worked(answers: dict[str, httpx.Response]) -> bool:
    """Return whether all routes did their work; an image is no frame, and has no film."""
    statuses = {path: answer.status_code for path, answer in answers.items()}
    return statuses.pop("/v1/images/{image_id}/source") == 404 and {*statuses.values()} == {200}


def wait_for(client: TestClient, status: int) -> httpx.Response:
    until = time.monotonic() + 60
    while (answer := client.get("/readyz")).status_code != status:
        assert time.monotonic() < until, answer.text
        time.sleep(0.05)
    return answer


def found(client: TestClient) -> dict[str, Any]:
    """Search until it is answered: on a busy machine a server may seem to be away for a moment."""
    until = time.monotonic() + 60
    ask = {"text": "a red square", "top_k": 3}
    while (answer := client.post("/v1/search", json=ask)).status_code != 200:
        assert time.monotonic() < until, answer.text
        time.sleep(0.05)
    return dict(answer.json())


def refused(answer: httpx.Response, error: str, words: str) -> None:
    assert (answer.status_code, answer.json()["error"]) == (503, error), answer.text
    assert words in answer.json()["message"]
    assert int(answer.headers["retry-after"]) >= 1


def metric(client: TestClient, line: str) -> float:
    text = client.get("/metrics").text
    return sum(float(row.split()[-1]) for row in text.splitlines() if row.startswith(line))


@pytest.mark.usefixtures("patient")
def test_every_route_says_what_is_wrong_and_all_work_again(
    server: ServerProcess,
    filled: None,
    serve: Callable[..., TestClient],
    encoded: Encoded,
) -> None:
    client = serve(server.url)
    cursor = found(client)["cursor"]
    working = ask_all(client, encoded, cursor)
    assert worked(working)
    assert metric(client, "edje_index_up") == 1

    server.kill()
    refused(wait_for(client, 503), AWAY, "the index does not answer")
    for answer in ask_all(client, encoded, cursor).values():
        refused(answer, AWAY, "the index does not answer")
    assert client.get("/healthz").status_code == 200
    image = {"image": base64.b64encode(encoded[0][0].read_bytes()).decode()}
    for path, body in (
        ("/v1/embeddings", {"input": ["a", image]}),
        ("/v1/rerank", {"query": "a", "documents": [image]}),
        ("/v1/rerank", {"query": image, "documents": ["a", "b"]}),
    ):
        assert client.post(path, json=body).status_code == 200
    assert client.get("/v1/models").status_code == 200
    assert metric(client, "edje_index_up") == 0
    assert metric(client, f'edje_index_failures_total{{error="{AWAY}"}}') == len(working)

    server.start()
    wait_for(client, 200)
    assert metric(client, "edje_index_up") == 1
    assert worked(ask_all(client, encoded, cursor))


def test_a_silent_server(
    server: ServerProcess,
    filled: None,
    serve: Callable[..., TestClient],
    encoded: Encoded,
) -> None:
    client = serve(server.url)
    cursor = found(client)["cursor"]
    server.pause()
    try:
        refused(wait_for(client, 503), AWAY, "the index does not answer")
        # Searched for while nothing is known yet, and after.
        for _ in range(2):
            refused(client.post("/v1/search", json={"text": "a"}), AWAY, "does not answer")
        for answer in ask_all(client, encoded, cursor).values():
            refused(answer, AWAY, "the index does not answer")
    finally:
        server.resume()
    wait_for(client, 200)
    assert found(client)["hits"]


@pytest.fixture(params=["stand-in", pytest.param("server", marks=pytest.mark.qdrant_server)])
def address(request: pytest.FixtureRequest) -> str:
    """A stand-in's address, or that of a real server, in EDJE_QDRANT_URL."""
    if request.param == "stand-in":
        return str(request.getfixturevalue("server").url)
    if not (url := os.environ.get("EDJE_QDRANT_URL")):
        pytest.skip("EDJE_QDRANT_URL names no server")
    return url


@pytest.mark.usefixtures("patient")
def test_a_collection_that_is_gone(
    address: str,
    serve: Callable[..., TestClient],
    tiny_model: EDJEModel,
    encoded: Encoded,
) -> None:
    name = f"edje-test-{uuid.uuid4().hex[:8]}"
    fill(address, name, tiny_model, encoded)
    client = serve(address, name)
    cursor = found(client)["cursor"]
    other = QdrantClient(url=address, check_compatibility=False)
    other.delete_collection(name)
    # Several together are one batch, which is asked once.
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        ask = {"json": {"text": "a red square"}}
        together = [pool.submit(client.post, "/v1/search", **ask) for _ in range(4)]
    for each in together:
        refused(each.result(), GONE, "the collection is gone")
    refused(wait_for(client, 503), GONE, "the collection is gone")
    for answer in ask_all(client, encoded, cursor).values():
        refused(answer, GONE, "the collection is gone")
    assert metric(client, f'edje_index_failures_total{{error="{GONE}"}}') > 10
    fill(address, name, tiny_model, encoded)
    wait_for(client, 200)
    assert client.post("/v1/search", json={"text": "a red square"}).json()["hits"]
    # Another model's under the same name is not searched.
    other.delete_collection(name)
    contract = replace(tiny_model.contract(), adapter_hash="0" * 16)
    ImageCollection.create(address, name, contract).close()
    answer = wait_for(client, 503)
    refused(answer, "ContractMismatchError", "was replaced by another model's")
    refused(client.post("/v1/search", json={"text": "a"}), "ContractMismatchError", "replaced")
    other.delete_collection(name)
    other.close()


@pytest.mark.usefixtures("patient")
def test_a_node_of_a_cluster_is_away(
    serve: Callable[..., TestClient], tiny_model: EDJEModel, encoded: Encoded
) -> None:
    with StandIn() as cluster:
        fill(cluster.url, "images", tiny_model, encoded)
        client = serve(cluster.url)
        cluster.node_away = True
        refused(client.post("/v1/search", json={"text": "a"}), AWAY, "does not answer")
        # Its description is still read, and so points have to be: the service is not ready.
        refused(wait_for(client, 503), AWAY, "does not answer")
        cluster.node_away = False
        wait_for(client, 200)
        assert client.post("/v1/search", json={"text": "a"}).status_code == 200


@pytest.mark.usefixtures("patient")
def test_a_servers_limit_of_requests(
    serve: Callable[..., TestClient],
    tiny_model: EDJEModel,
    encoded: Encoded,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with StandIn() as limited:
        fill(limited.url, "images", tiny_model, encoded)
        client = serve(limited.url)
        # One for the search, and one for the probe of `/readyz`.
        limited.failures.extend([(429, {"Retry-After": "60"})] * 2)
        answer = client.post("/v1/search", json={"text": "a"})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "60"), answer.text
        assert client.get("/readyz").status_code == 200
        assert not limited.failures
        assert client.post("/v1/search", json={"text": "a"}).status_code == 200
        assert metric(client, 'edje_index_failures_total{error="RateLimitedError"}') == 1
    assert "the index cannot be asked" not in caplog.text


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_a_key_that_is_taken_back(
    serve: Callable[..., TestClient], tiny_model: EDJEModel, encoded: Encoded
) -> None:
    with StandIn() as guarded:
        fill(guarded.url, "images", tiny_model, encoded)
        guarded.keys = {"a-key": False}
        client = serve(guarded.url, api_key="a-key")
        # It may search, and not write.
        assert client.post("/v1/search", json={"text": "a"}).status_code == 200
        image = Image.new("RGB", (64, 64), "orange")
        file = io.BytesIO()
        image.save(file, "PNG")
        answer = client.post("/v1/ingest", files={"files": ("new.png", file.getvalue())})
        refused(answer, "KeyRefusedError", "refuses this request of the service's key")
        assert client.get("/readyz").status_code == 200
        guarded.keys = {"another-key": False}
        answer = client.post("/v1/search", json={"text": "a"})
        refused(answer, "KeyRefusedError", "refuses this request of the service's key")
        assert guarded.url not in answer.text
        refused(wait_for(client, 503), "KeyRefusedError", "key")
        guarded.keys = {"a-key": False}
        wait_for(client, 200)


@pytest.mark.slow
def test_over_grpc(
    folder: Path, serve: Callable[..., TestClient], tiny_model: EDJEModel, encoded: Encoded
) -> None:
    server = ServerProcess(folder / "grpc", grpc=True)
    try:
        fill(server.url, "images", tiny_model, encoded)
        client = serve(server.url, prefer_grpc=True, grpc_port=server.grpc_port)
        assert found(client)["hits"]
        server.kill()
        refused(client.post("/v1/search", json={"text": "a"}), AWAY, "does not answer")
        refused(wait_for(client, 503), AWAY, "does not answer")
        time.sleep(5)  # gRPC would wait longer and longer before it connects again
        server.start()
        wait_for(client, 200)
        assert found(client)["hits"]
        server.pause()
        refused(client.post("/v1/search", json={"text": "a"}), AWAY, "does not answer")
        refused(wait_for(client, 503), AWAY, "does not answer")
        server.resume()
        wait_for(client, 200)
        assert found(client)["hits"]
    finally:
        server.resume()
        server.end()


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
def test_a_slow_server_is_waited_for_and_not_ready(
    serve: Callable[..., TestClient],
    tiny_model: EDJEModel,
    encoded: Encoded,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(availability, "_PATIENCE", 0.8)
    with StandIn() as slow:
        fill(slow.url, "images", tiny_model, encoded)
        client = serve(slow.url)
        slow.delay = 1.5
        answer = client.get("/readyz")
        refused(answer, AWAY, "does not answer")
        assert client.post("/v1/search", json={"text": "a"}).status_code == 200
        slow.delay = 0
        wait_for(client, 200)


@pytest.mark.parametrize(("seconds", "header"), [(59.2, "60"), (None, "1")])
def test_a_limit_of_requests_is_passed_on(
    shared: TestClient, monkeypatch: pytest.MonkeyPatch, seconds: float | None, header: str
) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise RateLimitedError("10.0.0.7 has had enough", retry_after=seconds)

    monkeypatch.setattr(shared.retriever, "search_batch", fail)  # type: ignore[attr-defined]
    answer = shared.post("/v1/search", json={"text": "a"})
    assert (answer.status_code, answer.json()["error"]) == (429, "RateLimitedError")
    assert answer.json()["message"].endswith(f"try again in {header} s")
    assert answer.headers["retry-after"] == header
    assert shared.get("/readyz").status_code == 200


def test_a_folder_is_not_probed(shared: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(*_args: Any, **_options: Any) -> None:
        raise AssertionError

    retriever = shared.retriever  # type: ignore[attr-defined]
    search = retriever.search_batch

    def slowly(*args: Any, **options: Any) -> Any:
        time.sleep(0.8)
        return search(*args, **options)

    monkeypatch.setattr(retriever, "search_batch", slowly)
    monkeypatch.setattr(type(retriever.collection), "probe", probe)
    assert shared.post("/v1/search", json={"text": "a"}).status_code == 200
    assert shared.get("/readyz").status_code == 200


def test_a_request_with_a_short_limit_of_its_own_stops_no_others(
    shared: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise EngineUnavailableError("not within the budget")

    with monkeypatch.context() as patch:
        patch.setattr(shared.retriever, "search_batch", fail)  # type: ignore[attr-defined]
        refused(shared.post("/v1/search", json={"text": "a"}), AWAY, "does not answer")
    assert shared.post("/v1/search", json={"text": "a"}).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["killed", "paused"])
def test_the_command_is_quick_to_say_so(
    fault: str,
    server: ServerProcess,
    tiny_model: EDJEModel,
    tiny_folder: Path,
    encoded: Encoded,
) -> None:
    """Thirty searches at once, and probes, beside a server that has just gone.

    Orchestrators allow a probe one second; the bounds here leave room for a busy machine.
    """
    fill(server.url, fault, tiny_model, encoded)
    service = ServiceProcess("--url", server.url, "--collection", fault, "--model", tiny_folder)
    try:
        service.wait()
        with httpx.Client(base_url=service.url, timeout=60) as client:
            (server.kill if fault == "killed" else server.pause)()

            def timed(method: str, path: str, **more: Any) -> tuple[float, httpx.Response]:
                begun = time.monotonic()
                answer = client.request(method, path, **more)
                return time.monotonic() - begun, answer

            ask = {"json": {"text": "a red square"}}
            with concurrent.futures.ThreadPoolExecutor(30) as pool:
                waiting = [pool.submit(timed, "POST", "/v1/search", **ask) for _ in range(30)]
                probes = [timed("GET", "/readyz") for _ in range(20)]
                searches = [each.result() for each in waiting]
            searches.append(timed("POST", "/v1/search", **ask))
            probes.append(timed("GET", "/readyz"))
            (server.start if fault == "killed" else server.resume)()
            until = time.monotonic() + 30
            while client.get("/readyz").status_code != 200 and time.monotonic() < until:
                time.sleep(0.05)
            after = timed("POST", "/v1/search", **ask)
    finally:
        server.resume()
        service.end()
    for _, answer in searches:
        refused(answer, AWAY, "the index does not answer")
    assert probes[-1][1].status_code == 503
    assert max(seconds for seconds, _ in probes) < 3
    assert max(seconds for seconds, _ in searches[:-1]) < 8
    assert searches[-1][0] < 3
    assert after[1].status_code == 200
    assert "Traceback" not in searches[0][1].text
