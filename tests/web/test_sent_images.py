"""Images of requests: encoded once, kept by content within a bound, decoded within limits."""

from __future__ import annotations

import base64
import io
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny_edje import build_tiny_model

TEXT = "a red square"


@pytest.fixture
def count(monkeypatch, tiny_model):
    """Numbers of images in each call of the vision model."""
    calls = []
    start = type(tiny_model).start_encoding

    def counted(self, pixels):
        calls.append(len(pixels))
        return start(self, pixels)

    monkeypatch.setattr(type(tiny_model), "start_encoding", counted)
    return calls


def png(number, size=(20, 10)):
    file = io.BytesIO()
    Image.new("RGB", size, (number, 2 * number, 3)).save(file, "PNG")
    return file.getvalue()


def document(number):
    return {"image": base64.b64encode(png(number)).decode()}


def rank(client, documents, text=TEXT):
    answer = client.post("/v1/rerank", json={"query": text, "documents": documents})
    assert answer.status_code == 200, answer.text
    results = sorted(answer.json()["results"], key=lambda each: each["index"])
    return np.array([each["score"] for each in results])


def test_a_second_query_runs_no_vision_model(serve, count):
    client = serve()
    documents = [document(number) for number in range(10)]
    first = rank(client, documents)
    assert count == [8, 2]
    np.testing.assert_allclose(rank(client, documents), first, atol=1e-5)
    rank(client, documents[::-1], "two dogs on a boat")
    client.post("/v1/embeddings", json={"input": documents})
    client.post("/v1/rerank", json={"query": documents[3], "documents": ["a", "b"]})
    assert count == [8, 2]
    metrics = client.get("/metrics").text
    assert 'edje_sent_images_total{outcome="encoded"} 10.0' in metrics
    assert 'edje_sent_images_total{outcome="cached"} 31.0' in metrics


def test_one_image_twice_in_a_request_is_encoded_once(serve, count):
    client = serve()
    same = rank(client, [document(1), document(2), document(1)])
    assert count == [2]
    assert same[0] == pytest.approx(same[2], abs=1e-6)
    data = base64.b64encode(png(2)).decode()
    rank(client, [f"data:image/png;base64,{data}", {"image": f"data:image/jpeg;base64,{data}"}])
    assert count == [2]  # the content counts, not how it was sent


def test_the_cache_is_bounded(serve, count):
    entry = serve_entry_bytes()
    client = serve(image_cache_bytes=3 * entry)
    for number in (0, 1, 2, 0, 3):  # 3 takes the place of 1, which was used longest ago
        rank(client, [document(number)])
    assert sum(count) == 4
    rank(client, [document(0), document(2), document(3)])
    assert sum(count) == 4
    rank(client, [document(1)])
    assert sum(count) == 5


def test_there_may_be_no_cache(serve, count):
    client = serve(image_cache_bytes=0)
    for _ in range(2):
        rank(client, [document(1)])
    assert sum(count) == 2


def serve_entry_bytes():
    """Return the bytes of an entry with the tiny model: 4 tokens of 16 numbers, 24 dimensions."""
    return 24 * 4 + 4 * 16 * 2 + 1024


def test_another_model_makes_the_cache_useless(serve, count, monkeypatch):
    client = serve()
    rank(client, [document(1)])
    other = build_tiny_model()
    other.eval()
    stages = replace(client.retriever._stages, model=other)
    monkeypatch.setattr(client.retriever, "_stages", stages)
    rank(client, [document(1)])
    assert sum(count) == 2


def test_images_that_were_encoded_before_a_broken_one_are_kept(serve, count):
    client = serve()
    documents = [document(number) for number in range(9)]
    broken = [*documents, {"image": base64.b64encode(png(1)[:30]).decode()}]
    answer = client.post("/v1/rerank", json={"query": TEXT, "documents": broken})
    assert (answer.status_code, "documents.9" in answer.json()["detail"]) == (422, True)
    assert count == [8]
    rank(client, documents)
    assert count == [8, 1]


def test_images_keep_to_the_decoders_limits(serve):
    client = serve(max_pixels=100)
    large = {"image": base64.b64encode(png(1, (11, 10))).decode()}
    answer = client.post("/v1/rerank", json={"query": TEXT, "documents": [large]})
    assert (answer.status_code, answer.json()["error"]) == (422, "ImageReadError")
    assert "documents.0" in answer.json()["detail"]
    eps = base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n").decode()
    answer = client.post("/v1/embeddings", json={"input": {"image": eps}})
    assert (answer.status_code, answer.json()["error"]) == (422, "ImageReadError")


def test_requests_with_images_at_once(serve, count):
    client = serve()
    alone = rank(client, [document(number) for number in range(4)])
    with ThreadPoolExecutor(6) as pool:
        found = [*pool.map(lambda _: rank(client, [document(n) for n in range(4)]), range(12))]
    for scores in found:
        np.testing.assert_allclose(scores, alone, atol=1e-5)
    assert sum(count) == 4


@pytest.mark.slow
def test_what_was_encoded_too_late_is_kept(serve, count, monkeypatch, tiny_model):
    client = serve(timeout=2)
    rank(client, [document(0)])
    start, done = type(tiny_model).start_encoding, threading.Event()
    late = threading.Event()

    def slow(self, pixels):
        late.wait(30)
        encode = start(self, pixels)
        return lambda: (encode(), done.set())[0]

    monkeypatch.setattr(type(tiny_model), "start_encoding", slow)
    body = {"query": TEXT, "documents": [document(1)]}
    assert client.post("/v1/rerank", json=body).status_code == 504
    late.set()
    assert done.wait(30)
    client.app.state.service.batcher.do(lambda: None).result()  # after the job that was late
    monkeypatch.setattr(type(tiny_model), "start_encoding", start)
    rank(client, [document(1)])
    assert count == [1, 1]


def test_a_request_ends_at_its_time_limit(serve, monkeypatch):
    client = serve(timeout=0.3)
    batcher = client.app.state.service.batcher

    def slow(work):
        return Future()  # never done

    monkeypatch.setattr(batcher, "do", slow)
    answer = client.post("/v1/rerank", json={"query": TEXT, "documents": [document(1)]})
    assert (answer.status_code, answer.json()["error"]) == (504, "Timeout")
