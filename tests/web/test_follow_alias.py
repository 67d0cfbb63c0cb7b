"""A service that follows an alias, or stays with what the alias stood for."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from index_stand_in import StandIn
from PIL import Image
from qdrant_client import QdrantClient, models
from service_process import ServiceProcess

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import CheckpointError, StoreError
from edje_qdrant.migration import change_over, cut_over, migrate
from edje_qdrant.model import EDJEModel
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.types import ImageEncoding
from edje_qdrant.web import follow as follow_module
from edje_qdrant.web.app import create_app
from edje_qdrant.web.serving import Served, Serving
from edje_qdrant.web.settings import ServiceSettings

Encoded = tuple[list[Path], list[str], ImageEncoding]
TEXT = {"text": "a red square"}


@cache
def encoding_of(model: EDJEModel, *paths: Path) -> ImageEncoding:
    return model.encode_images([Image.open(path) for path in paths])


class Place:
    """A server, and names there that no other test uses."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = QdrantClient(url=url, check_compatibility=False)
        self.prefix = f"edje-test-{uuid.uuid4().hex[:8]}-"

    def name(self, name: str) -> str:
        return self.prefix + name

    def point(self, to: str) -> None:
        """Move the alias, in one request."""
        alias = self.name("live")
        made = models.CreateAlias(collection_name=self.name(to), alias_name=alias)
        actions: list[Any] = [models.CreateAliasOperation(create_alias=made)]
        if alias in {each.alias_name for each in self.client.get_aliases().aliases}:
            gone = models.DeleteAlias(alias_name=alias)
            actions.insert(0, models.DeleteAliasOperation(delete_alias=gone))
        self.client.update_collection_aliases(actions)

    def fill(self, name: str, model: EDJEModel, encoded: Encoded) -> None:
        paths, ids, _ = encoded
        encoding = encoding_of(model, *paths)
        with ImageCollection.create(self.url, self.name(name), model.contract()) as collection:
            collection.add(ids, encoding, [{"of": name} for _ in ids])


@pytest.fixture(params=["stand-in", pytest.param("server", marks=pytest.mark.qdrant_server)])
def server(
    request: pytest.FixtureRequest, tiny_model: EDJEModel, other_model: EDJEModel, encoded: Encoded
) -> Iterator[Place]:
    with ExitStack() as stack:
        if request.param == "stand-in":
            url = stack.enter_context(StandIn()).url
        elif not (url := os.environ.get("EDJE_QDRANT_URL", "")):
            pytest.skip("EDJE_QDRANT_URL names no server")
        place = Place(url)
        place.fill("v1", tiny_model, encoded)
        place.fill("v2", other_model, encoded)
        place.point("v1")
        yield place
        for collection in place.client.get_collections().collections:
            if collection.name.startswith(place.prefix):
                place.client.delete_collection(collection.name)
        place.client.close()


class Following:
    """A service in this process, and what it loads."""

    def __init__(self, server: Place, models: list[EDJEModel], stack: ExitStack) -> None:
        self.server, self.models = server, models
        self.error: Exception | None = None
        self.loaded = 0
        self.first = self.opened()
        app = create_app(self.first, ServiceSettings(), follow=self.load)
        self.client = stack.enter_context(TestClient(app, raise_server_exceptions=False))

    def opened(self) -> TwoStageRetriever:
        collection = ImageCollection.open(self.server.url, self.server.name("live"))
        key = collection.contract.model_key
        (model,) = [each for each in self.models if each.contract().model_key == key]
        return TwoStageRetriever(collection, model)

    def load(self, _before: TwoStageRetriever) -> TwoStageRetriever:
        self.loaded += 1
        if self.error is not None:
            raise self.error
        return self.opened()

    def served(self) -> str:
        found = str(self.client.get("/v1/collection").json()["resolved_name"])
        return found.removeprefix(self.server.prefix)

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
    end = time.monotonic() + 120
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def following(
    server: Place, tiny_model: EDJEModel, other_model: EDJEModel,
    monkeypatch: pytest.MonkeyPatch, patient: None,
) -> Iterator[Following]:  # fmt: skip
    monkeypatch.setattr(follow_module, "_EVERY", 0.02)
    monkeypatch.setattr(follow_module, "_AGAIN", 0.1)
    with ExitStack() as stack:
        yield Following(server, [tiny_model, other_model], stack)


def close_to(one: list[tuple[str, float]], other: list[tuple[str, float]]) -> bool:
    return [i for i, _ in one] == [i for i, _ in other] and all(
        a == pytest.approx(b, abs=1e-3) for (_, a), (_, b) in zip(one, other, strict=True)
    )


def test_a_moved_alias_is_followed(following: Following, server: Place) -> None:
    before = following.ranking()
    cursor = following.client.post("/v1/search", json={**TEXT, "top_k": 3}).json()["cursor"]
    server.point("v2")
    following.wait_for("v2")
    with following.opened() as fresh:
        expected = [(hit.image_id, hit.score) for hit in fresh.search(TEXT["text"], top_k=5)]
    after = following.ranking()
    assert close_to(after, expected)
    assert not close_to(after, before)
    answer = following.client.post("/v1/search/next", json={"cursor": cursor})
    assert answer.status_code == 400
    message = answer.json()["message"]
    names = server.name("v1"), server.name("v2")
    assert "of the collection {!r}, and this is {!r}".format(*names) in message
    assert "search again" in message
    until(lambda: closed(following.first))
    assert following.metric('edje_collection_changes_total{outcome="changed"}') == 1
    assert following.metric("edje_alias_followed") == 1
    server.point("v1")
    following.wait_for("v1")
    assert close_to(following.ranking(), before)


def closed(retriever: TwoStageRetriever) -> bool:
    try:
        retriever.collection.index.require_open()
    except StoreError:
        return True
    return False


def test_a_search_under_way_ends_on_what_it_began_with(
    following: Following, server: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    reads = following.first.collection.codes

    def slow(*args: Any, **more: Any) -> Any:
        began.set()
        assert go_on.wait(120)
        return reads(*args, **more)

    before = following.ranking()
    monkeypatch.setattr(following.first.collection, "codes", slow)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(following.ranking)
        assert began.wait(120)
        server.point("v2")
        following.wait_for("v2")
        after = following.ranking()
        assert not closed(following.first)
        assert not running.done()
        go_on.set()
        assert close_to(running.result(120), before)
    assert not close_to(after, before)
    until(lambda: closed(following.first))


def test_what_cannot_be_loaded_leaves_the_service_as_it_is(
    following: Following, server: Place, caplog: pytest.LogCaptureFixture
) -> None:
    before = following.ranking()
    following.error = CheckpointError("no model at /gone", path="/gone")
    with caplog.at_level(logging.INFO, logger="edje_qdrant.web"):
        server.point("v2")
        until(lambda: following.loaded >= 2)  # tried again
        assert close_to(following.ranking(), before)
        assert following.served() == "v1"
        assert following.client.get("/readyz").status_code == 200
        assert following.metric('edje_collection_changes_total{outcome="failed"}') >= 1
        assert following.metric("edje_alias_followed") == 0
        failed = [record for record in caplog.records if record.levelname == "ERROR"]
        assert "stands for now, cannot be served" in failed[0].message
        assert failed[0].message.startswith(server.name("v2"))
        following.error = None
        following.wait_for("v2")
    assert following.metric("edje_alias_followed") == 1


def test_a_collection_that_replaced_the_one_served_is_loaded(
    following: Following, server: Place, other_model: EDJEModel, encoded: Encoded
) -> None:
    server.client.delete_collection(server.name("v1"))
    server.fill("v1", other_model, encoded)
    until(lambda: following.metric('edje_collection_changes_total{outcome="changed"}') == 1
          if following.loaded else False)  # fmt: skip
    with following.opened() as fresh:
        expected = [(hit.image_id, hit.score) for hit in fresh.search(TEXT["text"], top_k=5)]
    assert close_to(following.ranking(), expected)


@pytest.mark.slow
def test_a_migration_is_followed_and_no_request_fails(
    following: Following,
    server: Place,
    other_model: EDJEModel,
    encoded: Encoded,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths, ids, _ = encoded
    before = following.ranking()
    side = f"v1--{other_model.contract().model_key}"
    rankings: list[list[tuple[str, float]]] = []

    def during_grace(seconds: float) -> None:
        if seconds != 17:
            return
        while following.served() != side:
            assert following.client.get("/readyz").status_code == 200
            rankings.append(following.ranking())
        assert following.client.get("/readyz").status_code == 200

    with ImageCollection.open(server.url, server.name("live")) as collection:
        collection.update_payload(
            {key: {"path": str(path)} for key, path in zip(ids, paths, strict=True)}
        )
        assert migrate(collection, other_model, workers=1, progress=False).missing == ()
        assert close_to(following.ranking(), before)
        with monkeypatch.context() as patch:
            patch.setattr(change_over, "_IN_FLIGHT", 0)
            patch.setattr(change_over, "sleep", during_grace)
            cut_over(collection, other_model, grace=17, progress=False)
    with following.opened() as fresh:
        expected = [(hit.image_id, hit.score) for hit in fresh.search(TEXT["text"], top_k=5)]
    assert close_to(following.ranking(), expected)
    assert not close_to(expected, before)
    assert all(close_to(each, before) or close_to(each, expected) for each in rankings)


def test_without_following_it_stays_where_it_was(server: Place, tiny_model: EDJEModel) -> None:
    retriever = TwoStageRetriever.open(server.url, server.name("live"), model=tiny_model)
    with TestClient(create_app(retriever, ServiceSettings())) as client:
        server.point("v2")
        time.sleep(0.1)
        info = client.get("/v1/collection").json()
        assert (info["name"], info["resolved_name"]) == (server.name("live"), server.name("v1"))
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
    models_of = {"v1": tiny_folder, "v2": tmp_path / "other"}
    other_model.save_pretrained(models_of["v2"])
    with StandIn() as stand_in:
        server = Place(stand_in.url)
        for name, folder in models_of.items():
            server.fill(name, EDJEModel.from_pretrained(folder, device="cpu"), encoded)
        server.point("v1")
        arguments = ["--url", server.url, "--collection", server.name("live"), "--follow-alias"]
        service = ServiceProcess(*arguments, "--device", "cpu")
        try:
            service.wait()

            def served() -> tuple[str, str]:
                info = httpx.get(f"{service.url}/v1/collection").json()
                return info["resolved_name"], info["model"]

            assert served() == (server.name("v1"), str(models_of["v1"]))
            server.point("v2")
            until(lambda: served() == (server.name("v2"), str(models_of["v2"])))
            found = httpx.post(f"{service.url}/v1/search", json=TEXT).json()["hits"]
            assert {hit["payload"]["of"] for hit in found} == {"v2"}
        finally:
            assert service.end() == 0
            server.client.close()
        assert any(f"serving {server.name('v2')} now" in line["message"] for line in service.log())
