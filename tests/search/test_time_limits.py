"""A search over a server takes no longer than its time limit, retries and pauses included."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_stand_in import RefusalError, StandIn
from PIL import Image
from qdrant_client import models
from server_process import ServerProcess

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import EngineUnavailableError, RateLimitedError
from edje_qdrant.index.qdrant import connection as connections
from edje_qdrant.index.qdrant.patience import TimeLimit, current_limit
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.model import EDJEModel
from edje_qdrant.search.retriever import TwoStageRetriever

WriteImages = Callable[..., list[Path]]
Server = tuple[StandIn, TwoStageRetriever, list[str]]


@pytest.fixture
def served(tmp_path: Path, tiny_model: EDJEModel, write_images: WriteImages) -> Iterator[Server]:
    """A stand-in, a search over it with a time limit of 30 s, and the ids of its images."""
    write_images(tmp_path / "pictures", 6)
    with StandIn() as server:
        with ImageCollection.create(server.url, "images", tiny_model.contract()) as collection:
            ingest_images(tmp_path / "pictures", collection, tiny_model, progress=False, workers=1)
            ids = [point.id for page in collection.index.scroll() for point in page]
        retriever = TwoStageRetriever.open(server.url, model=tiny_model, timeout=30)
        server.seen.clear()
        yield server, retriever, ids
        retriever.close()


def asked(server: StandIn, end: str) -> int:
    """Return how many requests came whose line ends so, once one did: the client may be quicker."""
    until = time.monotonic() + 60
    while not (count := sum(line.endswith(end) for line in server.seen)):
        assert time.monotonic() < until
        time.sleep(0.01)
    return count


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the pauses between tries instead of waiting."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(connections.time, "sleep", waited.append)
    monkeypatch.setattr(connections.asyncio, "sleep", sleep)
    return waited


TEXT = "a red ring"
FILTER = models.Filter(must=[models.HasIdCondition(has_id=[f"{1:032x}"])])
WAYS: dict[str, Callable[[TwoStageRetriever, list[str]], Any]] = {
    "search": lambda retriever, ids: retriever.search(TEXT),
    "with a filter": lambda retriever, ids: retriever.search(TEXT, filter=FILTER),
    "grouped": lambda retriever, ids: retriever.search(TEXT, group_by="path"),
    "batch": lambda retriever, ids: retriever.search_batch([TEXT, "a blue cube", "a cat"]),
    "async": lambda retriever, ids: asyncio.run(retriever.asearch(TEXT)),
    "stream": lambda retriever, ids: [*retriever.search_stream(TEXT)],
    "by image": lambda retriever, ids: retriever.search_by_image(Image.new("RGB", (50, 40))),
    "recommend": lambda retriever, ids: retriever.recommend(ids[:1]),
    "score": lambda retriever, ids: retriever.score(TEXT, ids),
}


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, marks=[] if way in ("search", "async") else pytest.mark.slow)
        for way in WAYS
    ],
)
def test_a_server_that_does_not_answer_is_waited_for_once(served: Server, way: str) -> None:
    """With the time of the search it is over: there is no second try."""
    server, retriever, ids = served
    # Shorter than what may be asked for.
    object.__setattr__(retriever.collection.index._backend._connection._options, "timeout", 0.3)
    server.delay = 60
    with pytest.raises(EngineUnavailableError, match="with no time left for more"):
        WAYS[way](retriever, ids)
    assert asked(server, "") == 1


@pytest.mark.parametrize("way", ["search", "batch", "async", "score"])
def test_a_rate_limit_that_does_not_fit_is_an_error_at_once(
    served: Server, pauses: list[float], way: str
) -> None:
    server, retriever, ids = served
    server.failures.extend([(429, {"Retry-After": "60"})] * 9)
    with pytest.raises(RateLimitedError, match="try again in 60 s") as caught:
        WAYS[way](retriever, ids)
    assert caught.value.retry_after == 60
    assert len(server.seen) == 1
    assert not pauses


def test_a_rate_limit_that_fits_is_waited_for(
    served: Server, pauses: list[float], tiny_model: EDJEModel
) -> None:
    server, _, _ = served
    with TwoStageRetriever.open(server.url, model=tiny_model, timeout=30) as retriever:
        server.failures.extend([(429, {"Retry-After": "7"})])
        assert len(retriever.search(TEXT)) == 6
        assert pauses == [7.0]
        server.failures.extend([(429, {"Retry-After": "14"})] * 9)
        with pytest.raises(RateLimitedError):  # 14 s and 14 s would fit, but no third time
            retriever.search(TEXT)
        assert pauses == [7.0, 14.0, 14.0]


def hold_tokens(server: StandIn) -> None:
    """Let a server find points, and not answer when their tokens are read."""
    admit = server.admit

    def hold(method: str, path: list[str], key: str | None) -> None:
        if path[2:] == ["points"]:
            server._ended.wait(60)
            raise RefusalError(503, "late")
        admit(method, path, key)

    server.admit = hold  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "way",
    [
        "search",
        *(pytest.param(way, marks=pytest.mark.slow) for way in ("batch", "async", "stream")),
    ],
)
def test_a_server_that_stops_between_the_stages(
    served: Server, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, retriever, ids = served
    hold_tokens(server)
    codes = retriever.collection.codes

    def late(*args: Any, **more: Any) -> Any:
        limit = current_limit()
        assert limit is not None
        limit.spend(limit.left - 0.3, answered=False)
        return codes(*args, **more)

    monkeypatch.setattr(retriever.collection, "codes", late)
    with pytest.raises(EngineUnavailableError, match="with no time left for more"):
        WAYS[way](retriever, ids)
    assert asked(server, "POST /collections/images/points") == 1


def test_tokens_that_do_not_come_within_the_budget_leave_the_first_stages_order(
    served: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, retriever, _ = served
    assert not retriever.search(TEXT, budget_ms=60_000).degraded
    hold_tokens(server)
    codes, perf_counter = retriever.collection.codes, time.perf_counter

    def late(*args: Any, **more: Any) -> Any:
        monkeypatch.setattr(time, "perf_counter", lambda: perf_counter() + 60 - 0.2)
        return codes(*args, **more)

    monkeypatch.setattr(retriever.collection, "codes", late)
    result = retriever.search(TEXT, budget_ms=60_000)
    assert result.degraded
    assert str(result.reason).startswith("the budget of 60000 ms ended, so 6 of 6 candidates were")
    assert [hit.rank for hit in result] == [hit.retrieval_rank for hit in result]
    assert len(result) == 6
    assert result.scored == 0


def test_a_limit_counts_calls_and_not_what_is_between_them() -> None:
    limit = TimeLimit(10)
    with limit:
        assert current_limit() is limit
        limit.spend(4, answered=True)
        with TimeLimit(100) as inner:  # does not extend the outer one
            assert inner.left == 6
            inner.spend(5, answered=False)
        assert limit.left == 1
    assert current_limit() is None
    with limit:
        limit.spend(1, answered=True)
        with pytest.raises(TimeoutError):
            limit.require_left()


def test_the_answers_of_a_batch_may_take_longer_but_not_a_server_that_is_away() -> None:
    limit = TimeLimit(10, queries=5)
    limit.spend(40, answered=True)
    assert limit.left == 2
    limit.spend(2, answered=False)
    assert limit.left == 0
    left = iter([3.0, 0.5])
    assert [TimeLimit(1, left=lambda: next(left)).left for _ in range(2)] == [1, 0.5]


def test_what_is_read_ahead_has_the_limit_of_its_search() -> None:
    seen: list[Any] = []
    with TimeLimit(1) as limit:
        from contextvars import copy_context

        context = copy_context()
        thread = threading.Thread(target=lambda: seen.append(context.run(current_limit)))
        thread.start()
        thread.join()
    assert seen == [limit]


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_server_that_is_paused(
    tmp_path: Path, tiny_model: EDJEModel, write_images: WriteImages
) -> None:
    """A process that accepts connections and answers none, for all ways to search."""
    write_images(tmp_path / "pictures", 6)
    server = ServerProcess(tmp_path / "data")
    try:
        with ImageCollection.create(server.url, "images", tiny_model.contract()) as collection:
            ingest_images(tmp_path / "pictures", collection, tiny_model, progress=False, workers=1)
            ids = [point.id for page in collection.index.scroll() for point in page]
        with TwoStageRetriever.open(server.url, model=tiny_model, timeout=2) as retriever:
            server.pause()
            for way in WAYS.values():
                with pytest.raises(EngineUnavailableError, match="after 1 tries"):
                    way(retriever, ids)
            server.resume()
            assert len(retriever.search(TEXT)) == 6
            assert np.isfinite(retriever.score(TEXT, ids)).all()
    finally:
        with suppress(ProcessLookupError):
            server.resume()
        server.end()
