"""Budgets, failures and searches beside an event loop: what a search does when things go badly."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from index_stand_in import StandIn
from numpy.typing import NDArray
from rounding import float32_slack
from searching import TEXTS, engine_places, full_scores, make_collection, numbers

from edje_qdrant.errors import CheckpointError, ConfigError, EngineUnavailableError
from edje_qdrant.index import QdrantOptions, open_on_server
from edje_qdrant.model import EDJEModel, FastJointEncoder
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.search.results import SearchResult
from edje_qdrant.search.retriever import TwoStageRetriever


class Clock:
    """Stand in for the time, so that no test waits and none depends on the machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


class SlowReranker(Reranker):
    """Score as always, and let a pair take a known time on the clock."""

    def __init__(self, model: EDJEModel, clock: Clock, seconds: float) -> None:
        super().__init__(model)
        self.clock, self.seconds, self.pairs = clock, seconds, 0

    def score_pairs(self, texts: Any, tokens: Any) -> NDArray[np.float32]:
        self.clock.now += self.seconds * len(texts)
        self.pairs += len(texts)
        return super().score_pairs(texts, tokens)


class BrokenReranker(Reranker):
    """Score some pairs, then fail."""

    def __init__(self, model: EDJEModel, good: int, error: Exception) -> None:
        super().__init__(model)
        self.good, self.error = good, error

    def score_pairs(self, texts: Any, tokens: Any) -> NDArray[np.float32]:
        if self.good < len(texts):
            raise self.error
        self.good -= len(texts)
        return super().score_pairs(texts, tokens)


@pytest.fixture(params=["edge", "memory", "faiss"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return engine_places(tmp_path)[request.param]


def expected(model: EDJEModel, text: str, scored: int, candidates: int = 40) -> list[int]:
    """Return the ranking in which the first `scored` were scored and the others follow."""
    cosines, logits = full_scores(model, text)
    rows = np.argsort(-cosines)[:candidates]
    best = rows[:scored]
    return [*best[np.argsort(-logits[best], kind="stable")].tolist(), *rows[scored:].tolist()]


def shown(result: SearchResult) -> list[int]:
    return [hit.payload["number"] for hit in [*result, *result.remaining]]


def test_a_budget_scores_best_first_as_long_as_it_lasts(
    place: Any, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    reranker = SlowReranker(tiny_model, clock, 0.001)
    collection = make_collection(place, tiny_model)
    with TwoStageRetriever(collection, tiny_model, reranker=reranker) as retriever:
        before = 0
        for budget in (1, 5, 11, 20, 39.9):
            began = clock.now
            result = retriever.search(TEXTS[0], top_k=5, num_candidates=40, budget_ms=budget)
            assert clock.now - began <= max(budget, 4) / 1000 + 1e-9  # a first slice is four pairs
            assert before <= result.scored < 40
            before = result.scored
            assert shown(result) == expected(tiny_model, TEXTS[0], result.scored)
            assert [hit.score is None for hit in [*result, *result.remaining]] == (
                [False] * result.scored + [True] * (40 - result.scored)
            )
            assert result.degraded
            assert result.reason is not None
            assert f"the budget of {budget:g} ms ended" in result.reason
            assert f"{40 - result.scored} of 40 candidates were not scored" in result.reason
        assert before >= 30  # most of a budget is put to use
        whole = retriever.search(TEXTS[0], num_candidates=40, budget_ms=1000)
        assert not whole.degraded
        assert whole.scored == 40
        assert numbers(whole) == numbers(retriever.search(TEXTS[0], num_candidates=40))


def test_a_stream_ranks_what_is_scored_so_far_in_slices_of_measured_size(
    place: Any, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    reranker = SlowReranker(tiny_model, clock, 0.001)
    collection = make_collection(place, tiny_model)
    with TwoStageRetriever(collection, tiny_model, reranker=reranker) as retriever:
        options: Any = {"top_k": 5, "num_candidates": 40}
        for scored in ([4, 14, 34, 40], [10, 30, 40]):  # the speed is known at last
            results = []
            began = clock.now
            for result in retriever.search_stream(TEXTS[0], first_ms=10.1, **options):
                assert results or clock.now - began <= 0.0101
                assert shown(result) == expected(tiny_model, TEXTS[0], result.scored)
                assert not result.degraded
                results.append(result)
            assert [result.scored for result in results] == scored
        assert shown(results[-1]) == shown(retriever.search(TEXTS[0], **options))
        *_, last = retriever.search_stream(TEXTS[0], first_ms=10.1, budget_ms=25, **options)
        assert last.degraded
        assert 20 <= last.scored <= 25
        assert shown(last) == expected(tiny_model, TEXTS[0], last.scored)


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("a dog", {"first_ms": 0}, "first_ms is 0; give milliseconds above 0"),
        ("a dog", {"first_ms": float("nan")}, "first_ms is nan"),
        ("a dog", {"top_k": 0}, "top_k"),
        ("!", {}, "contains no word"),
    ],
)
def test_a_stream_checks_its_options_before_anything_is_read_from_it(
    tmp_path: Path, tiny_model: EDJEModel, text: str, options: Any, said: str
) -> None:
    unknown: Any = {"colour": 1}
    with TwoStageRetriever(make_collection(tmp_path, tiny_model), tiny_model) as retriever:
        with pytest.raises(ConfigError, match=said):
            retriever.search_stream(text, **options)
        with pytest.raises(TypeError, match="colour"):
            retriever.search_stream("a dog", **unknown)


def test_a_stream_reports_missing_tokens_and_failures_as_a_search_does(
    tmp_path: Path, tiny_model: EDJEModel
) -> None:
    broken = BrokenReranker(tiny_model, 6, RuntimeError("the device is gone"))
    collection = make_collection(tmp_path, tiny_model)
    with TwoStageRetriever(collection, tiny_model, reranker=broken) as retriever:
        *_, last = retriever.search_stream(TEXTS[0], first_ms=0.001, num_candidates=40)
    assert last.reason is not None
    assert "the device is gone" in last.reason
    assert last.scored == 4
    assert shown(last) == expected(tiny_model, TEXTS[0], 4)


def test_a_budget_that_is_over_before_scoring_leaves_the_first_stage(
    place: Any, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    collection = make_collection(place, tiny_model)
    reranker = SlowReranker(tiny_model, clock, 0.001)
    nearest = collection.nearest

    def slow(*args: Any, **kwargs: Any) -> Any:
        clock.now += 0.5
        return nearest(*args, **kwargs)

    monkeypatch.setattr(collection, "nearest", slow)
    with TwoStageRetriever(collection, tiny_model, reranker=reranker) as retriever:
        result = retriever.search(TEXTS[1], num_candidates=40, budget_ms=100)
        assert result.degraded
        assert result.scored == reranker.pairs == 0
        assert shown(result) == expected(tiny_model, TEXTS[1], 0)
        nothing = retriever.search(TEXTS[1], num_candidates=40, budget_ms=100, min_score=-1e9)
        assert len(nothing) == 0  # what has no score cannot be said to reach any


def test_a_batch_shares_its_budget(
    place: Any, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    reranker = SlowReranker(tiny_model, clock, 0.001)
    collection = make_collection(place, tiny_model)
    with TwoStageRetriever(collection, tiny_model, reranker=reranker) as retriever:
        results = retriever.search_batch(TEXTS, num_candidates=40, budget_ms=60)
    assert 40 <= sum(result.scored for result in results) <= 60
    assert max(r.scored for r in results) - min(r.scored for r in results) <= 1
    for text, result in zip(TEXTS, results, strict=True):
        assert shown(result) == expected(tiny_model, text, result.scored)


def test_one_slow_moment_does_not_keep_later_searches_from_scoring(
    place: Any, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    reranker = SlowReranker(tiny_model, clock, 10.0)
    collection = make_collection(place, tiny_model)
    with TwoStageRetriever(collection, tiny_model, reranker=reranker) as retriever:
        retriever.search(TEXTS[0], num_candidates=40, budget_ms=50)
        reranker.seconds = 0.001
        scored = [
            retriever.search(TEXTS[0], num_candidates=40, budget_ms=50).scored for _ in range(60)
        ]
    assert scored[0] == 0
    assert scored[-1] == 40


@pytest.mark.parametrize("good", [0, 16])
def test_a_reranker_that_fails_leaves_the_first_stages_order(
    place: Any, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch, good: int
) -> None:
    error = RuntimeError("the device is gone\nand more")
    collection = make_collection(place, tiny_model)
    with TwoStageRetriever(
        collection, tiny_model, reranker=BrokenReranker(tiny_model, good, error)
    ) as retriever:
        monkeypatch.setattr(retriever._scorer, "pairs_at_once", 8)
        result = retriever.search(TEXTS[0], num_candidates=40)
    assert result.scored == good
    assert shown(result) == expected(tiny_model, TEXTS[0], good)
    assert result.degraded
    assert result.reason == (
        "the reranker failed: RuntimeError: the device is gone, so "
        f"{40 - good} of 40 candidates were not scored and follow in first-stage order"
    )


def test_a_failure_concerns_the_queries_it_met(
    place: Any, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = make_collection(place, tiny_model)
    reranker = BrokenReranker(tiny_model, 60, MemoryError())
    with TwoStageRetriever(collection, tiny_model, reranker=reranker) as retriever:
        monkeypatch.setattr(retriever._scorer, "pairs_at_once", 20)
        results = retriever.search_batch(TEXTS[:3], num_candidates=20)
        assert not any(result.degraded for result in results)
        reranker.good = 60
        monkeypatch.setattr(retriever._scorer, "pairs_at_once", 10)
        results = retriever.search_batch(TEXTS[:3], num_candidates=30)
    # Each was to get 10 more in turn: twice for each, and then there was no memory left.
    assert [result.scored for result in results] == [20, 20, 20]
    assert all(result.degraded for result in results)
    for text, result in zip(TEXTS, results, strict=False):
        assert shown(result) == expected(tiny_model, text, 20, 30)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_makes_batches_smaller(
    tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    tokens = np.random.default_rng(0).normal(size=(37, 4, 16)).astype(np.float16)
    whole = Reranker(tiny_model, batch_size=32).score(TEXTS[0], tokens)
    forward, sizes = FastJointEncoder.__call__, []

    def small(self: Any, captions: Any, tokens: Any) -> Any:
        sizes.append(len(tokens))
        if len(tokens) > 5:
            raise error
        return forward(self, captions, tokens)

    monkeypatch.setattr(FastJointEncoder, "__call__", small)
    scores = Reranker(tiny_model, batch_size=32).score(TEXTS[0], tokens)
    np.testing.assert_allclose(scores, whole, atol=float32_slack(whole))
    assert sizes[:4] == [32, 16, 8, 4]
    assert {*sizes[4:-1]} == {4}

    def never(*args: Any) -> Any:
        raise error

    monkeypatch.setattr(FastJointEncoder, "__call__", never)
    with pytest.raises(type(error)):
        Reranker(tiny_model).score(TEXTS[0], tokens)


def test_scores_that_are_no_numbers_are_an_error_always(
    place: Any, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TwoStageRetriever(make_collection(place, tiny_model), tiny_model) as retriever:
        weight = tiny_model.joint_encoder.classifier.weight
        monkeypatch.setattr(weight, "data", torch.full_like(weight, float("nan")))
        with pytest.raises(CheckpointError, match="not numbers"):
            retriever.search(TEXTS[0])


def test_asearch_finds_the_same_and_the_loop_goes_on(
    place: Any, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TwoStageRetriever(make_collection(place, tiny_model), tiny_model) as retriever:
        forward = FastJointEncoder.__call__
        scoring, ticked = threading.Event(), threading.Event()

        async def tick(done: asyncio.Event) -> None:
            while not done.is_set():
                if scoring.is_set():
                    ticked.set()
                await asyncio.sleep(0.01)

        def waiting(*args: Any) -> Any:
            scoring.set()
            assert ticked.wait(60)  # for ever, if the loop stood still while pairs are scored
            return forward(*args)

        async def main() -> list[SearchResult]:
            done = asyncio.Event()
            ticking = asyncio.create_task(tick(done))
            try:
                with monkeypatch.context() as patch:
                    patch.setattr(FastJointEncoder, "__call__", waiting)
                    return await asyncio.gather(
                        *(retriever.asearch(text, num_candidates=40) for text in TEXTS)
                    )
            finally:
                done.set()
                await ticking

        results = asyncio.run(main())
        assert ticked.is_set()
        for text, result in zip(TEXTS, results, strict=True):
            again = retriever.search(text, num_candidates=40)
            assert numbers(result) == numbers(again)

        async def refused() -> None:
            with pytest.raises(ConfigError, match="word"):
                await retriever.asearch("...")
            with pytest.raises(ConfigError, match="fusion"):
                await retriever.asearch("a cat", fusion="sum")  # type: ignore[typeddict-item]

        asyncio.run(refused())


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as running:
        yield running


def test_asearch_asks_a_server_through_the_asynchronous_client(
    server: StandIn, tiny_model: EDJEModel
) -> None:
    with TwoStageRetriever(make_collection(server.url, tiny_model), tiny_model) as retriever:
        expected = numbers(retriever.search(TEXTS[0], filter={"album": "2024"}))

        async def main() -> list[SearchResult]:
            return await asyncio.gather(
                *(retriever.asearch(TEXTS[0], filter={"album": "2024"}) for _ in range(8))
            )

        for _ in range(2):  # each run has an event loop of its own
            seen = len(server.seen)
            for result in asyncio.run(main()):
                assert numbers(result) == expected
            assert sum("query/batch" in request for request in server.seen[seen:]) == 8
        server.failures.extend([(503, {})] * 2)  # tried again, as the other client's calls are
        result = asyncio.run(retriever.asearch(TEXTS[0], filter={"album": "2024"}))
        assert numbers(result) == expected


def test_a_server_that_is_away_does_not_outlast_the_budget(
    server: StandIn, tiny_model: EDJEModel
) -> None:
    collection = make_collection(server.url, tiny_model)
    index = open_on_server(server.url, "images", QdrantOptions(retries=50, backoff=0.2))
    collection._index.close()
    collection._index = index
    with TwoStageRetriever(collection, tiny_model) as retriever:
        for search in (
            retriever.search,
            lambda *a, **k: asyncio.run(retriever.asearch(*a, **k)),
        ):
            server.failures.extend([(503, {})] * 50)
            with pytest.raises(EngineUnavailableError, match="no time left"):
                search(TEXTS[0], budget_ms=600)
            assert len(server.failures) > 40  # fifty tries would take over ten minutes
            server.failures.clear()
        assert numbers(retriever.search(TEXTS[0], budget_ms=60_000))
