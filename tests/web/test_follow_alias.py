"""A service that follows an alias, or stays with what the alias stood for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from index_stand_in import StandIn
from PIL import Image
from service_process import ServiceProcess

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import CheckpointError, StoreError
from edje_qdrant.model import EDJEModel
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.types import ImageEncoding
from edje_qdrant.web import follow as follow_module
from edje_qdrant.web.app import create_app
from edje_qdrant.web.serving import Served, Serving
from edje_qdrant.web.settings import ServiceSettings

Encoded = tuple[list[Path], list[str], ImageEncoding]
TEXT = {"text": "a red square"}


def point(server: StandIn, to: str) -> None:
    made = {"collection_name": to, "alias_name": "live"}
    server.answer("POST", ["collections", "aliases"], {"actions": [{"create_alias": made}]})


def fill(server: StandIn, name: str, model: EDJEModel, encoded: Encoded) -> None:
    paths, ids, _ = encoded
    encoding = model.encode_images([Image.open(path) for path in paths])
    with ImageCollection.create(server.url, name, model.contract()) as collection:
        collection.add(ids, encoding, [{"of": name} for _ in ids])


@pytest.fixture
def server(tiny_model: EDJEModel, other_model: EDJEModel, encoded: Encoded) -> Iterator[StandIn]:
    with StandIn() as server:
        fill(server, "v1", tiny_model, encoded)
        fill(server, "v2", other_model, encoded)
        point(server, "v1")
        yield server


class Following:
    """A service in this process, and what it loads."""

    def __init__(self, server: StandIn, models: list[EDJEModel], stack: ExitStack) -> None:
        self.server, self.models = server, models
        self.error: Exception | None = None
        self.loaded = 0
        self.first = self.opened()
        app = create_app(self.first, ServiceSettings(), follow=self.load)
        self.client = stack.enter_context(TestClient(app, raise_server_exceptions=False))

    def opened(self) -> TwoStageRetriever:
        collection = ImageCollection.open(self.server.url, "live")
        key = collection.contract.model_key
        (model,) = [each for each in self.models if each.contract().model_key == key]
        return TwoStageRetriever(collection, model)

    def load(self, _before: TwoStageRetriever) -> TwoStageRetriever:
        self.loaded += 1
        if self.error is not None:
            raise self.error
        return self.opened()

    def served(self) -> str:
        return str(self.client.get("/v1/collection").json()["resolved_name"])

    def wait_for(self, name: str) -> None:
        until(lambda: self.served() == name)

    def metric(self, name: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        found = [line.split()[-1] for line in lines if line.startswith(name)]
        return float(found[0]) if found else 0.0

    def ranking(self) -> list[tuple[str, float]]:
        answer = self.client.post("/v1/search", json={**TEXT, "top_k": 5})
        assert answer.status_code == 200, answer.text
        hits = answer.json()["hits"]
        assert len({hit["payload"]["of"] for hit in hits}) == 1
        return [(hit["image_id"], hit["score"]) for hit in hits]


def until(done: Callable[[], bool]) -> None:
    for _ in range(600):
        if done():
            return
        time.sleep(0.02)
    raise AssertionError("did not happen in 12 s")


@pytest.fixture
def following(
    server: StandIn, tiny_model: EDJEModel, other_model: EDJEModel,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Following]:  # fmt: skip
    monkeypatch.setattr(follow_module, "_EVERY", 0.02)
    monkeypatch.setattr(follow_module, "_AGAIN", 0.1)
    with ExitStack() as stack:
        yield Following(server, [tiny_model, other_model], stack)


def close_to(one: list[tuple[str, float]], other: list[tuple[str, float]]) -> bool:
    return [i for i, _ in one] == [i for i, _ in other] and all(
        a == pytest.approx(b, abs=1e-3) for (_, a), (_, b) in zip(one, other, strict=True)
    )


def test_a_moved_alias_is_followed(following: Following, server: StandIn) -> None:
    before = following.ranking()
    cursor = following.client.post("/v1/search", json={**TEXT, "top_k": 3}).json()["cursor"]
    point(server, "v2")
    following.wait_for("v2")
    with following.opened() as fresh:
        expected = [(hit.image_id, hit.score) for hit in fresh.search(TEXT["text"], top_k=5)]
    after = following.ranking()
    assert close_to(after, expected)
    assert not close_to(after, before)
    answer = following.client.post("/v1/search/next", json={"cursor": cursor})
    assert answer.status_code == 400
    message = answer.json()["message"]
    assert "of the collection 'v1', and this is 'v2'" in message
    assert "search again" in message
    until(lambda: closed(following.first))
    assert following.metric('edje_collection_changes_total{outcome="changed"}') == 1
    assert following.metric("edje_alias_followed") == 1
    point(server, "v1")
    following.wait_for("v1")
    assert close_to(following.ranking(), before)


def closed(retriever: TwoStageRetriever) -> bool:
    try:
        retriever.collection.index.require_open()
    except StoreError:
        return True
    return False


def test_a_search_under_way_ends_on_what_it_began_with(
    following: Following, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    reads = following.first.collection.codes

    def slow(*args: Any, **more: Any) -> Any:
        began.set()
        assert go_on.wait(30)
        return reads(*args, **more)

    before = following.ranking()
    monkeypatch.setattr(following.first.collection, "codes", slow)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(following.ranking)
        assert began.wait(30)
        point(server, "v2")
        following.wait_for("v2")
        after = following.ranking()
        assert not closed(following.first)
        assert not running.done()
        go_on.set()
        assert close_to(running.result(30), before)
    assert not close_to(after, before)
    until(lambda: closed(following.first))


def test_what_cannot_be_loaded_leaves_the_service_as_it_is(
    following: Following, server: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    before = following.ranking()
    following.error = CheckpointError("no model at /gone", path="/gone")
    with caplog.at_level(logging.INFO, logger="edje_qdrant.web"):
        point(server, "v2")
        until(lambda: following.loaded >= 2)  # tried again
        assert close_to(following.ranking(), before)
        assert following.served() == "v1"
        assert following.client.get("/readyz").status_code == 200
        assert following.metric('edje_collection_changes_total{outcome="failed"}') >= 1
        assert following.metric("edje_alias_followed") == 0
        failed = [record for record in caplog.records if record.levelname == "ERROR"]
        assert "v2, which live stands for now, cannot be served; v1 is still" in failed[0].message
        following.error = None
        following.wait_for("v2")
    assert following.metric("edje_alias_followed") == 1


def test_a_collection_that_replaced_the_one_served_is_loaded(
    following: Following, server: StandIn, other_model: EDJEModel, encoded: Encoded
) -> None:
    server.answer("DELETE", ["collections", "v1"], {})
    fill(server, "v1", other_model, encoded)
    until(lambda: following.metric('edje_collection_changes_total{outcome="changed"}') == 1
          if following.loaded else False)  # fmt: skip
    with following.opened() as fresh:
        expected = [(hit.image_id, hit.score) for hit in fresh.search(TEXT["text"], top_k=5)]
    assert close_to(following.ranking(), expected)


def test_without_following_it_stays_where_it_was(server: StandIn, tiny_model: EDJEModel) -> None:
    retriever = TwoStageRetriever.open(server.url, "live", model=tiny_model)
    with TestClient(create_app(retriever, ServiceSettings())) as client:
        point(server, "v2")
        time.sleep(0.1)
        info = client.get("/v1/collection").json()
        assert (info["name"], info["resolved_name"]) == ("live", "v1")
        hits = client.post("/v1/search", json=TEXT).json()["hits"]
        assert {hit["payload"]["of"] for hit in hits} == {"v1"}


def test_what_was_served_is_closed_after_the_last_that_uses_it() -> None:
    closed: list[Serving] = []
    one, two = Serving(None, None, False), Serving(None, None, False)  # type: ignore[arg-type]
    served = Served(one, closed.append)
    seen: list[Serving] = []
    jobs: list[Callable[[], None]] = []
    waiting: Future[None] = Future()

    def submit(work: Callable[[], None]) -> Future[None]:
        jobs.append(work)
        return waiting

    with served.held():
        with served.held():
            served.change(two)
            assert served.current is one
        served.submit(submit, lambda: seen.append(served.current))
    assert served.current is two
    served.join()
    assert closed == []
    jobs[0]()  # a job whose request has ended
    assert seen == [one]
    waiting.set_result(None)
    served.join()
    assert closed == [one]
    with pytest.raises(ValueError, match="full"), served.held():
        served.submit(lambda _: (_ for _ in ()).throw(ValueError("full")), lambda: None)
    assert two.holders == 0


@pytest.mark.slow
def test_the_command_follows_an_alias(
    tmp_path: Path, tiny_folder: Path, other_model: EDJEModel, encoded: Encoded
) -> None:
    models = {"v1": tiny_folder, "v2": tmp_path / "other"}
    other_model.save_pretrained(models["v2"])
    with StandIn() as server:
        for name, folder in models.items():
            fill(server, name, EDJEModel.from_pretrained(folder, device="cpu"), encoded)
        point(server, "v1")
        arguments = ["--url", server.url, "--collection", "live", "--follow-alias"]
        service = ServiceProcess(*arguments, "--device", "cpu")
        try:
            service.wait()

            def served() -> tuple[str, str]:
                info = httpx.get(f"{service.url}/v1/collection").json()
                return info["resolved_name"], info["model"]

            assert served() == ("v1", str(models["v1"]))
            point(server, "v2")
            until(lambda: served() == ("v2", str(models["v2"])))
            found = httpx.post(f"{service.url}/v1/search", json=TEXT).json()["hits"]
            assert {hit["payload"]["of"] for hit in found} == {"v2"}
        finally:
            assert service.end() == 0
        assert any("serving v2 now" in line["message"] for line in service.log())
