"""Uploads whose decoders hang or crash: the service goes on answering, and ends when told."""

from __future__ import annotations

import io
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from decoder_finishes import Fragile
from PIL import Image
from service_process import ServiceProcess, hanging_decoders

from edje_qdrant.encoders import SiglipEncoder

ENDLESS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n"


def picture(width, height=40):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (width % 256, 90, 30)).save(buffer, "PNG")
    return buffer.getvalue()


class FragileEncoder(SiglipEncoder):
    @property
    def resize(self):
        return Fragile(super().resize)


def test_a_decoder_that_crashes_fails_its_upload_only(serve, monkeypatch):
    client = serve(ingest=True)
    monkeypatch.setattr(client.retriever.model.encoder, "__class__", FragileEncoder)
    one = client.post("/v1/search/image", files={"file": ("a.png", picture(102))})
    assert (one.status_code, one.json()["error"]) == (422, "ImageReadError")
    assert "killed by SIGKILL" in one.json()["message"]
    files = [("bomb.png", picture(103)), ("good.png", picture(40))]
    done = client.post("/v1/ingest", files=[("files", file) for file in files]).json()
    assert (done["added"], len(done["image_ids"])) == (1, 1)
    (bomb,) = done["failed"]
    assert "far more memory" in bomb["reason"]
    # A limit that a busy machine needs for the others would be waited for here.
    client.app.state.service.decoders._seconds = 0.5
    done = client.post("/v1/ingest", files={"files": ("hang.png", picture(101))}).json()
    (hang,) = done["failed"]
    assert "took more than 0.5 s" in hang["reason"]
    assert len([*(client.folder / "pictures" / "uploads").iterdir()]) == 1


def test_ghostscript_never_runs(serve, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "gs"
    script.write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    client = serve(ingest=True)
    one = client.post("/v1/search/image", files={"file": ("a.jpg", ENDLESS)})
    assert (one.status_code, "EPS, which is not read" in one.json()["message"]) == (422, True)
    done = client.post("/v1/ingest", files=[("files", ("a.jpg", ENDLESS))]).json()
    assert "EPS" in done["failed"][0]["reason"]
    (image_id, *_) = client.ids
    path = Path(client.get(f"/v1/images/{image_id}").json()["payload"]["path"])
    (client.folder / "pictures" / path).write_bytes(ENDLESS)
    assert client.get(f"/v1/images/{image_id}/thumbnail").status_code == 404
    assert client.get(f"/v1/images/{image_id}/file").status_code == 404
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def service(start, tmp_path, tiny_folder):
    with ExitStack() as stack:
        start(stack, tmp_path)
    environment = hanging_decoders(tmp_path / "site")
    service = ServiceProcess(
        "--index", tmp_path / "index", "--model", tiny_folder, "--images", tmp_path / "pictures",
        "--ingest", "--decode-seconds", 25,
        environment=environment,
    )  # fmt: skip
    service.wait()
    yield service
    service.end()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_hanging_decoders_neither_stop_the_service_nor_its_end(service, number):
    def upload(_):
        try:
            files = {"file": ("a.png", picture(101))}
            return httpx.post(f"{service.url}/v1/search/image", files=files, timeout=90).status_code
        except httpx.TransportError:
            return None

    with ThreadPoolExecutor(6) as threads:
        hanging = [threads.submit(upload, number) for number in range(6)]
        while "edje_requests_under_way 7.0" not in httpx.get(f"{service.url}/metrics").text:
            time.sleep(0.05)
        for _ in range(5):
            assert httpx.get(f"{service.url}/readyz", timeout=20).status_code == 200
            answer = httpx.post(f"{service.url}/v1/search", json={"text": "red"}, timeout=20)
            assert answer.status_code == 200
            assert httpx.get(f"{service.url}/v1/images", timeout=20).status_code == 200
        children = _children(service.process.pid)
        assert children
        began = time.monotonic()
        service.process.send_signal(number)
        assert service.process.wait(60) == 0
        seconds = time.monotonic() - began
        assert all(future.result() != 200 for future in hanging)
    assert seconds < 10 + 10  # the grace time, and the time to close on a busy machine
    until = time.monotonic() + 30
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < until, "a decoder still runs"
        time.sleep(0.05)


def _children(process):
    tasks = Path(f"/proc/{process}/task")
    return {
        int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()
    }
