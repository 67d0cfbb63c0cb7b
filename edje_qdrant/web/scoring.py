"""Do the model's work for many requests in one thread, searches with the same options together."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from edje_qdrant.errors import EdjeError
from edje_qdrant.search.settings import SearchOptions
from edje_qdrant.types import SearchResult

__all__ = ["BusyError", "LateError", "ScoringThread"]

T = TypeVar("T")

SearchBatch = Callable[..., Sequence[SearchResult]]


class BusyError(Exception):
    """Turn a request away: as many as may wait are waiting."""


class LateError(Exception):
    """Give a request up: it was not done in its time."""


@dataclass(eq=False)
class _Job(Generic[T]):
    """Hold what waits: one search, or any other work."""

    future: Future[T]
    arrived: float
    work: Callable[[], T] | None = None
    text: str = ""
    options: SearchOptions = field(default_factory=lambda: SearchOptions())
    key: str = ""


class ScoringThread:
    """Work through searches and other jobs in the order in which they came.

    A search waits `wait_ms` for others with the same options, and those that came while the last
    ones were done are there already: up to `max_batch` of them become one call of `search_batch`.

    Args:
        search_batch: `TwoStageRetriever.search_batch`.
        max_batch: Searches of one call, at most.
        wait_ms: How long the first of them waits.
        max_waiting: Jobs that may wait.
        observe: Called with the size of every batch of searches.
    """

    def __init__(
        self,
        search_batch: SearchBatch,
        *,
        max_batch: int = 16,
        wait_ms: float = 2.0,
        max_waiting: int = 128,
        observe: Callable[[int], None] | None = None,
    ) -> None:
        self._search_batch = search_batch
        self._max_batch, self._wait = max_batch, wait_ms / 1000
        self._max_waiting = max_waiting
        self._observe = observe
        self._jobs: deque[_Job[Any]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="edje-scoring", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Return how many jobs wait."""
        return len(self._jobs)

    @property
    def alive(self) -> bool:
        """Return whether jobs are taken and done."""
        return self._thread.is_alive() and not self._closing

    def search(
        self, text: str, options: SearchOptions, key: str | None = None
    ) -> Future[tuple[SearchResult, float]]:
        """Let a search be done, together with others of the same `key`.

        Args:
            text: The query.
            options: As `TwoStageRetriever.search_batch`.
            key: What tells the options from others'; made of them where they are plain JSON.

        Returns:
            The result, and the milliseconds that it waited.

        Raises:
            BusyError: Too many wait.
        """
        if key is None:
            key = json.dumps(options, sort_keys=True)
        return self._put(_Job(Future(), time.perf_counter(), text=text, options=options, key=key))

    def do(self, work: Callable[[], T]) -> Future[T]:
        """Let other work be done when its turn comes.

        Raises:
            BusyError: Too many wait.
        """
        return self._put(_Job(Future(), time.perf_counter(), work))

    def close(self, timeout: float = 30.0) -> None:
        """Take no more jobs, do those that wait, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)

    def _put(self, job: _Job[T]) -> Future[T]:
        with self._changed:
            if self._closing or len(self._jobs) >= self._max_waiting:
                raise BusyError
            self._jobs.append(job)
            self._changed.notify_all()
        return job.future

    def _run(self) -> None:
        while jobs := self._next():
            running = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if not running:
                continue
            if running[0].work is not None:
                _settle(running[0].future, running[0].work)
            else:
                self._search(running)

    def _next(self) -> list[_Job[Any]]:
        """Wait for the next job and those that can be done with it; empty at the end."""
        with self._changed:
            while not self._jobs:
                if self._closing:
                    return []
                self._changed.wait()
            first = self._jobs.popleft()
            if first.work is not None:
                return [first]
            batch = [first]
            until = first.arrived + self._wait
            while True:
                self._take_alike(batch)
                left = until - time.perf_counter()
                if len(batch) >= self._max_batch or left <= 0 or self._closing:
                    return batch
                self._changed.wait(left)

    def _take_alike(self, batch: list[_Job[Any]]) -> None:
        others: list[_Job[Any]] = []
        while self._jobs and len(batch) < self._max_batch:
            job = self._jobs.popleft()
            (batch if job.work is None and job.key == batch[0].key else others).append(job)
        self._jobs.extendleft(reversed(others))

    def _search(self, jobs: Sequence[_Job[Any]]) -> None:
        if self._observe is not None:
            self._observe(len(jobs))
        began = time.perf_counter()
        waited = [1000 * (began - job.arrived) for job in jobs]
        options = _in_the_time_left(jobs[0].options, max(waited))
        try:
            results = self._search_batch([job.text for job in jobs], **options)
            answers = [*zip(jobs, results, waited, strict=True)]
        except EdjeError as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:  # what is wrong with one must not be the others' loss
                self._search([job])
        except BaseException as error:  # the thread must go on, whatever this was
            for job in jobs:
                job.future.set_exception(error)
        else:
            for job, result, ms in answers:
                job.future.set_result((result, ms))


def _in_the_time_left(options: SearchOptions, waited: float) -> SearchOptions:
    """Return options whose budget is what remains of it."""
    budget = options.get("budget_ms")
    if budget is None:
        return options
    return {**options, "budget_ms": max(round(budget - waited, 1), 1.0)}


def _settle(future: Future[T], work: Callable[[], T]) -> None:
    try:
        result = work()
    except BaseException as error:  # the thread must go on, whatever this was
        future.set_exception(error)
    else:
        future.set_result(result)
