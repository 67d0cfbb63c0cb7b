"""What waits in one line: a bound on it, other work in it, and what is told of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rounding import float32_slack
from searching import TEXTS, make_collection

from edje_qdrant.errors import BusyError, ConfigError, EdjeError
from edje_qdrant.model import EDJEModel
from edje_qdrant.rerank.token_cache import DeviceTokenCache
from edje_qdrant.search.batcher import SearchBatcher
from edje_qdrant.search.results import SearchResult
from edje_qdrant.search.retriever import TwoStageRetriever


class HeldRetriever(TwoStageRetriever):
    """Search as always, once it is let: so requests gather behind the first."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.begun, self.let = threading.Event(), threading.Event()
        self.batches: list[list[str]] = []

    def search_batch(self, texts: Sequence[str], **options: Any) -> list[SearchResult]:
        self.begun.set()
        assert self.let.wait(60)
        self.batches.append([*texts])
        return super().search_batch(texts, **options)


@pytest.fixture
def retriever(tiny_model: EDJEModel, tmp_path: Path) -> Iterator[HeldRetriever]:
    with HeldRetriever(make_collection(tmp_path, tiny_model), tiny_model) as opened:
        yield opened
        opened.let.set()


def held(batcher: SearchBatcher, retriever: HeldRetriever) -> Future[SearchResult]:
    """Submit a search, and wait until it is begun and held."""
    first = batcher.submit("first")
    assert retriever.begun.wait(60)
    return first


def test_more_than_may_wait_are_turned_away(retriever: HeldRetriever) -> None:
    with SearchBatcher(retriever, max_waiting=2) as batcher:
        first = held(batcher, retriever)
        futures: list[Future[Any]] = [batcher.submit("a"), batcher.do(lambda: "work")]
        assert batcher.waiting == 2
        with pytest.raises(BusyError, match="2 requests wait already") as refused:
            batcher.submit("b")
        assert refused.value.waiting == 2
        with pytest.raises(BusyError):
            batcher.do(lambda: None)
        retriever.let.set()
        assert len(first.result(60)) == len(futures[0].result(60)) == 10
        assert futures[1].result(60) == "work"
        assert batcher.waiting == 0
        assert len(batcher.search("b")) == 10


def test_searches_overtake_others_only_to_join_what_is_before_them(
    retriever: HeldRetriever,
) -> None:
    order: list[str] = []
    sizes: list[int] = []
    with SearchBatcher(retriever, max_batch=2, observe=sizes.append) as batcher:
        held(batcher, retriever)
        asked: list[tuple[str, Future[Any]]] = [
            ("a", batcher.submit("a", top_k=3)),
            ("work", batcher.do(lambda: order.append("work"))),
            ("b", batcher.submit("b")),
            ("c", batcher.submit("a b", top_k=3)),  # with the first of its kind
            ("d", batcher.submit("dogs", top_k=3)),  # whose batch is full by now
        ]
        for name, future in asked:
            if name != "work":
                future.add_done_callback(lambda _, name=name: order.append(name))
        retriever.let.set()
        for _, future in asked:
            future.result(60)
    assert order == ["a", "c", "work", "b", "d"]
    assert retriever.batches == [["first"], ["a", "a b"], ["b"], ["dogs"]]
    assert sizes == [1, 2, 1, 1]


def test_how_long_a_search_waited_is_told(retriever: HeldRetriever) -> None:
    with SearchBatcher(retriever, max_wait_ms=0) as batcher:
        held(batcher, retriever)
        future = batcher.submit("a")
        assert future.waited_ms == 0
        time.sleep(0.02)
        retriever.let.set()
        future.result(60)
    assert future.waited_ms >= 20


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_work_that_fails_ends_neither_the_thread_nor_the_searches(
    retriever: HeldRetriever, error: type[BaseException]
) -> None:
    retriever.let.set()

    def fail() -> None:
        raise error

    with SearchBatcher(retriever) as batcher:
        with pytest.raises(error if error is ZeroDivisionError else EdjeError):
            batcher.do(fail).result(60)
        assert len(batcher.search("a")) == 10
        assert batcher.alive


def test_work_can_be_cancelled_while_it_waits(retriever: HeldRetriever) -> None:
    done: list[str] = []
    with SearchBatcher(retriever) as batcher:
        held(batcher, retriever)
        work = [batcher.do(lambda name=name: done.append(name)) for name in "abc"]
        assert work[1].cancel()
        retriever.let.set()
        work[2].result(60)
    assert done == ["a", "c"]


def test_answers_that_do_not_fit_and_observers_that_fail_do_not_end_the_thread(
    retriever: HeldRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever.let.set()
    fails = [ZeroDivisionError]

    def observe(_size: int) -> None:
        if fails:
            raise fails.pop()

    with SearchBatcher(retriever, observe=observe) as batcher:
        with pytest.raises(ZeroDivisionError):
            batcher.search("a")
        with monkeypatch.context() as patch:
            patch.setattr(retriever, "search_batch", lambda *_, **__: [])
            with pytest.raises(ValueError, match="zip"):
                batcher.search("a")
        assert len(batcher.search("a")) == 10


def test_closing_with_a_time_limit_answers_the_rest_later(retriever: HeldRetriever) -> None:
    batcher = SearchBatcher(retriever, max_waiting=9)
    assert batcher.alive
    first = held(batcher, retriever)
    futures = [batcher.submit(text) for text in TEXTS]
    batcher.close(timeout=0.01)
    assert not batcher.alive
    assert not first.done()
    with pytest.raises(ConfigError, match="closed"):
        batcher.do(lambda: None)
    retriever.let.set()
    batcher.close()
    assert all(len(future.result(0)) == 10 for future in [first, *futures])


@pytest.mark.parametrize("max_waiting", [0, 1.5, True])
def test_a_bound_must_be_a_number(retriever: HeldRetriever, max_waiting: Any) -> None:
    with pytest.raises(ConfigError, match="max_waiting"):
        SearchBatcher(retriever, max_waiting=max_waiting)


class MeetingRetriever(TwoStageRetriever):
    """Search as always, once two batches have begun."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.both = threading.Barrier(2, timeout=60)
        self.batches: list[list[str]] = []

    def search_batch(self, texts: Sequence[str], **options: Any) -> list[SearchResult]:
        self.batches.append([*texts])
        self.both.wait()
        return super().search_batch(texts, **options)


def test_two_threads_share_what_waits_and_search_at_the_same_time(
    tiny_model: EDJEModel, tmp_path: Path
) -> None:
    texts = [f"{text} {n}" for n in range(2) for text in TEXTS]
    with MeetingRetriever(make_collection(tmp_path, tiny_model), tiny_model) as retriever:
        with SearchBatcher(retriever, max_batch=8, max_wait_ms=60_000, threads=2) as batcher:
            futures = [batcher.submit(text) for text in texts]
            while not retriever.batches:
                time.sleep(0.01)
            # The second thread waits for as many again, until the batcher is closed.
        results = [future.result(0) for future in futures]
        assert sorted(retriever.batches) == sorted([texts[:4], texts[4:]])
        assert [result.query for result in results] == texts


def test_few_searches_are_one_batch_for_two_threads(tiny_model: EDJEModel, tmp_path: Path) -> None:
    with HeldRetriever(make_collection(tmp_path, tiny_model), tiny_model) as retriever:
        retriever.let.set()
        with SearchBatcher(retriever, max_batch=4, max_wait_ms=60_000, threads=2) as batcher:
            futures = [batcher.submit(text) for text in TEXTS]
            assert all(len(future.result(60)) == 10 for future in futures)
        assert retriever.batches == [TEXTS]


def test_other_work_runs_by_itself_beside_two_threads(retriever: HeldRetriever) -> None:
    steps: list[str] = []
    with SearchBatcher(retriever, max_wait_ms=0, threads=2) as batcher:
        first = held(batcher, retriever)
        work = batcher.do(lambda: steps.append(f"work after {len(retriever.batches)}"))
        later = batcher.submit("later")
        later.add_done_callback(lambda _: steps.append("later"))
        time.sleep(0.05)  # the second thread is idle, and starts neither
        assert not work.running()
        retriever.let.set()
        first.result(60)
        work.result(60)
        later.result(60)
    assert steps == ["work after 1", "later"]


def test_searches_of_many_threads_are_answered_by_two(
    tiny_model: EDJEModel, tmp_path: Path
) -> None:
    with TwoStageRetriever(make_collection(tmp_path, tiny_model), tiny_model) as retriever:
        texts = [f"{text} {n}" for n in range(15) for text in TEXTS]
        with (
            SearchBatcher(retriever, max_batch=8, threads=2) as batcher,
            ThreadPoolExecutor(16) as pool,
        ):
            work = [batcher.do(lambda: "work") for _ in range(3)]
            results = [*pool.map(batcher.search, texts)]
            assert {future.result(60) for future in work} == {"work"}
            assert batcher.alive
        assert not batcher.alive
        expected = retriever.search_batch(texts)
        for text, result, other in zip(texts, results, expected, strict=True):
            assert result.query == text
            slack = float32_slack([hit.score for hit in other])
            for hit, same in zip(result, other, strict=True):
                assert hit.score == pytest.approx(same.score, abs=slack)


@pytest.mark.gpu
def test_many_clients_of_a_gpu_get_what_a_search_of_their_own_returns(
    tiny_model: EDJEModel, tiny_folder: Path, tmp_path: Path
) -> None:
    collection = make_collection(tmp_path, tiny_model)
    texts = [" ".join([text] * (n % 5 + 1)) for n in range(60) for text in TEXTS]
    expected = TwoStageRetriever(collection, tiny_model).search_batch(texts)
    model = EDJEModel.from_pretrained(tiny_folder, device="cuda", dtype=torch.float32)
    cache = DeviceTokenCache(1 << 20, device="cuda")
    sizes: list[int] = []
    with (
        TwoStageRetriever(collection, model, token_cache=cache) as retriever,
        SearchBatcher(retriever, observe=sizes.append) as batcher,
        ThreadPoolExecutor(32) as pool,
    ):
        results = [*pool.map(batcher.search, texts)]
    assert sum(sizes) == len(texts)
    for text, result, other in zip(texts, results, expected, strict=True):
        assert result.query == text
        assert result.reason is None
        scores = [[hit.score for hit in each] for each in (result, other)]
        np.testing.assert_allclose(scores[0], scores[1], atol=1e-3)
