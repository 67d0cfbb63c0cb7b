from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from edje_qdrant.errors import EngineUnavailableError, RateLimitedError
from edje_qdrant.web import availability
from edje_qdrant.web.availability import Availability

AWAY = EngineUnavailableError("no answer")


class Index:
    """An index whose probes a test answers one by one, and a clock that it moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.asked: list[bool] = []
        self.changes: list[bool] = []
        self._arrived, self._answered = threading.Semaphore(0), threading.Semaphore(0)
        self._answers: list[Exception | None] = []
        self.availability = Availability(self.probe, self.changes.append, clock=lambda: self.now)

    def probe(self, points: bool) -> None:
        self.asked.append(points)
        self._arrived.release()
        self._answered.acquire()
        if (error := self._answers.pop(0)) is not None:
            raise error

    def answer(self, error: Exception | None = None) -> None:
        """Wait for a probe and answer it; return once the answer is known."""
        assert self._arrived.acquire(timeout=60)
        waited = self.availability._answer
        assert waited is not None
        self._answers.append(error)
        self._answered.release()
        waited.result(60)

    def check(self) -> Exception | None:
        return asyncio.run(self.availability.check())

    def end(self) -> None:
        self.availability.close()
        self._answers += [None] * 10
        self._answered.release(10)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    monkeypatch.setattr(availability, "_KEPT", 0.01)  # between probes; the clock is the test's
    index = Index()
    yield index
    index.end()


def test_an_answer_is_remembered(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "_KEPT", 1.0)
    index.availability.look()
    index.answer()
    for _ in range(5):
        assert index.check() is None
    assert index.asked == [False]
    index.now += 1.1
    index.availability.look()
    index.answer()
    assert index.asked == [False, False]


def test_probes_do_not_pile_up_where_the_index_is_silent(index: Index) -> None:
    index.availability.look()
    index.now += 0.9
    for _ in range(20):
        index.availability.look(suspect=True)
        assert "not answered for 0.9 s" in str(index.check())
    assert index.availability.error is None  # a busy server may take that long
    index.now += 2
    assert isinstance(index.availability.error, EngineUnavailableError)
    index.answer()
    assert index.availability.error is None
    assert index.check() is None
    assert index.asked == [False]


def test_it_is_probed_until_it_is_back(index: Index) -> None:
    index.availability.look()
    index.answer(AWAY)
    for _ in range(3):
        index.answer(AWAY)
        assert index.check() is AWAY
    assert index.availability.error is AWAY
    index.answer()
    assert index.availability.error is None
    assert index.check() is None
    assert index.asked == [False, True, True, True, True]
    assert index.changes == [False, True]


def test_a_failed_request_has_points_read_at_once(index: Index) -> None:
    index.availability.look()
    index.answer()
    index.availability.look(suspect=True)
    index.answer(AWAY)
    assert index.asked == [False, True]


def test_a_limit_of_requests_is_an_answer(index: Index) -> None:
    index.availability.look(suspect=True)
    index.answer(RateLimitedError("too many", retry_after=60))
    assert index.availability.error is None
    assert index.check() is None


def test_after_the_end_no_probe_is_sent(index: Index) -> None:
    index.availability.close()
    index.availability.look()
    assert index.asked == []
