from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rounding import float32_slack
from searching import TEXTS, make_collection, numbers

from edje_qdrant.errors import (
    ConfigError,
    EdjeError,
    EngineUnavailableError,
    StoreError,
    TokensCorruptError,
)
from edje_qdrant.model import EDJEModel
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.search.batcher import SearchBatcher
from edje_qdrant.search.results import SearchResult
from edje_qdrant.search.retriever import TwoStageRetriever

WORDS = ["a", "red", "square", "two", "dogs", "on", "boat", "kites", "over", "the", "lake", "b"]


class HeldReranker(Reranker):
    """Score as always, once it is let: so requests gather behind the one that is scored."""

    def __init__(self, model: EDJEModel) -> None:
        super().__init__(model)
        self.begun, self.let = threading.Event(), threading.Event()
        self.calls: list[int] = []

    def score_pairs(self, texts: Sequence[str], tokens: Any) -> NDArray[np.float32]:
        self.calls.append(len(dict.fromkeys(texts)))
        self.begun.set()
        assert self.let.wait(60)
        return super().score_pairs(texts, tokens)


@pytest.fixture
def held(tiny_model: EDJEModel, tmp_path: Path) -> Iterator[tuple[TwoStageRetriever, HeldReranker]]:
    reranker = HeldReranker(tiny_model)
    collection = make_collection(tmp_path, tiny_model)
    with TwoStageRetriever(collection, tiny_model, reranker=reranker) as retriever:
        yield retriever, reranker


@pytest.fixture
def retriever(tiny_model: EDJEModel, tmp_path: Path) -> Iterator[TwoStageRetriever]:
    with TwoStageRetriever(make_collection(tmp_path, tiny_model), tiny_model) as opened:
        yield opened


def queries(count: int) -> list[str]:
    return [f"{WORDS[n % len(WORDS)]} {WORDS[n // len(WORDS)]}" for n in range(count)]


def same(one: SearchResult, other: SearchResult) -> bool:
    scores = [[hit.score for hit in result] for result in (one, other)]
    return numbers(one) == numbers(other) and np.allclose(
        *scores, rtol=0, atol=float32_slack(*scores)
    )


def behind_one(
    batcher: SearchBatcher, reranker: HeldReranker, asked: Sequence[tuple[str, dict[str, Any]]]
) -> list[Future[SearchResult]]:
    """Submit requests while an earlier search is held, then let all go; wait for them."""
    first = batcher.submit("first")
    assert reranker.begun.wait(60)
    futures = [batcher.submit(text, **options) for text, options in asked]
    reranker.let.set()
    first.result(60)
    for future in futures:
        future.exception(60)
    return futures


def ask_for_ever(batcher: SearchBatcher) -> None:
    while True:
        batcher.submit("a").cancel()


def test_threads_get_what_a_search_of_their_own_returns(retriever: TwoStageRetriever) -> None:
    texts = queries(40)
    expected = retriever.search_batch(texts)
    with SearchBatcher(retriever, max_batch=8) as batcher, ThreadPoolExecutor(10) as pool:
        results = [*pool.map(batcher.search, texts)]
    for text, one, other in zip(texts, results, expected, strict=True):
        assert one.query == text
        assert same(one, other)


def test_what_gathers_during_a_search_is_one_batch(
    held: tuple[TwoStageRetriever, HeldReranker],
) -> None:
    retriever, reranker = held
    with SearchBatcher(retriever, max_batch=8) as batcher:
        behind_one(batcher, reranker, [(text, {}) for text in queries(11)])
    assert reranker.calls == [1, 8, 3]


def test_only_equal_options_are_merged_and_each_caller_gets_its_own(
    held: tuple[TwoStageRetriever, HeldReranker],
) -> None:
    retriever, reranker = held
    asked = [
        ("a", {"top_k": 3}),
        ("b", {"filter": {"number": 1}}),
        ("a b", {"top_k": 3}),
        ("b", {"filter": {"number": True}}),  # equal in Python, and nothing else
        ("dogs", {"filter": {"number": 1}}),
    ]
    with SearchBatcher(retriever) as batcher:
        futures = behind_one(batcher, reranker, asked)
    assert reranker.calls == [1, 2, 2]  # nothing to score where a number should be True
    for (text, options), future in zip(asked, futures, strict=True):
        assert same(future.result(), retriever.search(text, **options))
    assert [len(future.result()) for future in futures] == [3, 1, 3, 0, 1]


def test_a_filter_that_is_changed_after_asking_is_as_it_was(
    held: tuple[TwoStageRetriever, HeldReranker],
) -> None:
    retriever, reranker = held
    chosen: dict[str, Any] = {"number": [1, 2]}
    with SearchBatcher(retriever) as batcher:
        first = batcher.submit("first")
        assert reranker.begun.wait(60)
        future = batcher.submit("a", filter=chosen)
        chosen["number"].append(3)
        reranker.let.set()
        first.result(60)
        assert sorted(numbers(future.result(60))) == [1, 2]


def test_the_error_of_one_search_is_its_callers_alone(
    held: tuple[TwoStageRetriever, HeldReranker],
) -> None:
    retriever, reranker = held
    reranker.let.set()
    collection, texts = retriever.collection, queries(12)
    # The fewest candidates of which some queries have one that others have not.
    for count in range(1, 40):
        found = collection.nearest(retriever.model.encode_texts(texts), count)
        ids = [{candidate.image_id for candidate in candidates} for candidates in found]
        if some := set.union(*ids) - set.intersection(*ids):
            break
    damaged = min(some)
    expected = [retriever.search(text, top_k=1, num_candidates=count) for text in texts]
    reference = {**collection.index.retrieve([damaged])[damaged]["_edje"], "checksum": "0" * 16}
    collection.index.set_payload({damaged: {"_edje": reference}})
    reranker.let.clear()
    reranker.begun.clear()
    with SearchBatcher(retriever) as batcher:
        first = batcher.submit("first", on_missing="first_stage")
        assert reranker.begun.wait(60)
        futures = [batcher.submit(text, top_k=1, num_candidates=count) for text in texts]
        reranker.let.set()
        first.result(60)
        errors = [future.exception(60) for future in futures]
    assert [isinstance(e, TokensCorruptError) for e in errors] == [damaged in own for own in ids]
    for error, future, result in zip(errors, futures, expected, strict=True):
        if error is None:
            assert same(future.result(), result)


def test_an_engine_that_is_gone_is_asked_once_for_all(
    held: tuple[TwoStageRetriever, HeldReranker], monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever, reranker = held
    batches: list[int] = []

    def gone(texts: Sequence[str], **_: Any) -> list[SearchResult]:
        if len(texts) == 1 and texts[0] == "first":
            return search_batch(texts)
        batches.append(len(texts))
        raise EngineUnavailableError("gone")

    search_batch = retriever.search_batch
    monkeypatch.setattr(retriever, "search_batch", gone)
    with SearchBatcher(retriever) as batcher:
        futures = behind_one(batcher, reranker, [(text, {}) for text in queries(5)])
    assert all(isinstance(future.exception(), EngineUnavailableError) for future in futures)
    assert batches == [5]


def test_the_thread_outlives_what_ends_threads(
    retriever: TwoStageRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_batch = retriever.search_batch

    def ending(texts: Sequence[str], **options: Any) -> list[SearchResult]:
        if texts[0] == "end":
            raise SystemExit(3)
        return search_batch(texts, **options)

    monkeypatch.setattr(retriever, "search_batch", ending)
    with SearchBatcher(retriever) as batcher:
        with pytest.raises(EdjeError, match="SystemExit"):
            batcher.search("end")
        assert len(batcher.search("a")) == 10


@pytest.mark.parametrize(
    ("text", "options"),
    [("", {}), (3, {}), ("a", {"top_k": 0}), ("a", {"fusion": "sum"}), ("a", {"adaptive": True})],
)
def test_bad_requests_are_refused_where_they_are_made(
    retriever: TwoStageRetriever, text: Any, options: Any
) -> None:
    with SearchBatcher(retriever) as batcher:
        with pytest.raises(ConfigError):
            batcher.submit(text, **options)
        assert len(batcher.search("a")) == 10


@pytest.mark.parametrize(
    "options", [{"max_batch": 0}, {"max_batch": 1.5}, {"max_wait_ms": -1}, {"max_wait_ms": "3"}]
)
def test_bad_settings_are_refused(retriever: TwoStageRetriever, options: Any) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        SearchBatcher(retriever, **options)


def test_waiting_counts_for_the_budget(held: tuple[TwoStageRetriever, HeldReranker]) -> None:
    retriever, reranker = held
    with SearchBatcher(retriever) as batcher:
        first = batcher.submit("first")
        assert reranker.begun.wait(60)
        hurried = batcher.submit("a", budget_ms=20)
        time.sleep(0.05)  # longer than the budget, whatever the machine does
        reranker.let.set()
        first.result(60)
        result = hurried.result(60)
    assert result.degraded
    assert result.scored == 0
    assert len(result) == 10


def test_closing_answers_those_that_wait_and_takes_no_more(
    held: tuple[TwoStageRetriever, HeldReranker],
) -> None:
    retriever, reranker = held
    batcher = SearchBatcher(retriever, max_batch=2)
    first = batcher.submit("first")
    assert reranker.begun.wait(60)
    futures = [batcher.submit(text) for text in TEXTS]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    with pytest.raises(ConfigError, match="closed"):
        ask_for_ever(batcher)  # until close has begun
    reranker.let.set()
    closing.join(60)
    assert not closing.is_alive()
    assert all(future.done() for future in [first, *futures])
    assert all(len(future.result()) == 10 for future in [first, *futures])
    batcher.close()
    assert len(retriever.search("a")) == 10  # the retriever is not the batcher's


def test_a_callback_may_close_the_batcher(retriever: TwoStageRetriever) -> None:
    batcher = SearchBatcher(retriever)
    future = batcher.submit("a")
    future.add_done_callback(lambda _: batcher.close())
    assert len(future.result(60)) == 10
    batcher.close()
    with pytest.raises(ConfigError, match="closed"):
        batcher.search("a")


def test_a_closed_collection_is_each_callers_error(retriever: TwoStageRetriever) -> None:
    with SearchBatcher(retriever) as batcher:
        retriever.close()
        futures = [batcher.submit(text) for text in TEXTS]
        assert all(isinstance(future.exception(60), StoreError) for future in futures)


def test_cancelled_requests_are_not_searched_for(
    held: tuple[TwoStageRetriever, HeldReranker],
) -> None:
    retriever, reranker = held
    with SearchBatcher(retriever) as batcher:
        first = batcher.submit("first")
        assert reranker.begun.wait(60)
        futures = [batcher.submit(text) for text in TEXTS]
        assert futures[1].cancel()
        reranker.let.set()
        first.result(60)
        assert [len(f.result(60)) for f in futures if not f.cancelled()] == [10, 10, 10]
    assert reranker.calls == [1, 3]


def test_tasks_of_an_event_loop_search_together(
    held: tuple[TwoStageRetriever, HeldReranker],
) -> None:
    retriever, reranker = held
    reranker.let.set()
    expected = retriever.search_batch(TEXTS)
    reranker.let.clear()
    reranker.begun.clear()

    async def ask(batcher: SearchBatcher) -> list[SearchResult]:
        first = asyncio.create_task(batcher.asearch("first"))
        while not reranker.begun.is_set():
            await asyncio.sleep(0.001)
        tasks = [asyncio.create_task(batcher.asearch(text)) for text in [*TEXTS, "dogs"]]
        await asyncio.sleep(0)  # each has asked
        tasks.pop().cancel()
        await asyncio.sleep(0)
        with pytest.raises(ConfigError):
            await batcher.asearch("a", top_k=0)
        reranker.let.set()
        return [await task for task in [first, *tasks]]

    reranker.calls.clear()
    with SearchBatcher(retriever) as batcher:
        _, *results = asyncio.run(ask(batcher))
    assert reranker.calls == [1, 4]
    assert all(same(one, other) for one, other in zip(results, expected, strict=True))
