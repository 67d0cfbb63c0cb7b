"""Searches of many callers at a time, merged into batches that one thread works through."""

from __future__ import annotations

import asyncio
import copy
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from typing_extensions import Unpack

from edje_qdrant.checks import check_number, check_texts
from edje_qdrant.errors import BusyError, ConfigError, EdjeError, EngineUnavailableError
from edje_qdrant.search.options import SearchOptions
from edje_qdrant.search.results import SearchResult
from edje_qdrant.search.retriever import TwoStageRetriever

__all__ = ["SearchBatcher", "SearchFuture"]

T = TypeVar("T")

# What is left of a budget that ended while a request waited: enough to be told so.
_LEAST_MS = 1e-3


class SearchFuture(Future[SearchResult]):
    """Hold a search's result, once there is one.

    Attributes:
        waited_ms: Milliseconds from when it was asked for until it was begun; 0 before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waited_ms = 0.0


@dataclass(slots=True, eq=False)
class _Search:
    """Hold what one caller looks for, and where its answer goes."""

    text: str
    options: SearchOptions
    settings: SearchOptions
    future: SearchFuture = field(default_factory=SearchFuture)
    arrived: float = field(default_factory=time.perf_counter)
    # Settings as text as well: Python's 1 and True are equal, and a filter tells them apart.
    written: str = field(init=False)

    def __post_init__(self) -> None:
        self.written = repr(self.settings)

    def is_like(self, other: _Search | _Job) -> bool:
        """Tell whether both can be one batch; filters can be compared, but have no hash."""
        return (
            isinstance(other, _Search)
            and self.written == other.written
            and self.settings == other.settings
        )


@dataclass(slots=True, eq=False)
class _Job:
    """Hold other work, which is done by itself."""

    work: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)


class SearchBatcher:
    """Merge searches that callers ask for at about the same time.

    One thread does what was asked for, the oldest first. It takes up to `max_batch` searches with
    equal options and does them as one `search_batch`. While it works, further requests gather;
    where it is idle, the first request waits `max_wait_ms` at most for company. An error of one
    search, such as damaged tokens of its candidates, does not touch the others that were merged
    with it. Other work with the model can take its turn in the same thread.

    A budget counts from when a search is asked for, waiting included; searches that were merged
    share what is left of it.

    Args:
        retriever: What searches; it stays open when the batcher is closed.
        max_batch: Searches done at a time, at most.
        max_wait_ms: Milliseconds that a search waits for others.
        max_waiting: Requests that may wait, any number by default; more are turned away.
        observe: Called with the size of each batch before it is done, in the thread that searches.

    Raises:
        ConfigError: A number cannot be used.

    Examples:
        >>> with SearchBatcher(retriever) as batcher:
        ...     result = batcher.search("a red kite", top_k=5)  # from any thread
        ...     futures = [batcher.submit(text) for text in texts]
    """

    def __init__(
        self,
        retriever: TwoStageRetriever,
        *,
        max_batch: int = 32,
        max_wait_ms: float = 3.0,
        max_waiting: int | None = None,
        observe: Callable[[int], None] | None = None,
    ) -> None:
        check_number("max_batch", max_batch)
        check_number("max_waiting", max_waiting, optional=True)
        if (
            isinstance(max_wait_ms, bool)
            or not isinstance(max_wait_ms, int | float)
            or not math.isfinite(max_wait_ms)
            or max_wait_ms < 0
        ):
            raise ConfigError(f"max_wait_ms is {max_wait_ms!r}; give milliseconds, 0 or more")
        self._retriever = retriever
        self._max_batch, self._max_wait = max_batch, max_wait_ms / 1000
        self._max_waiting, self._observe = max_waiting, observe
        self._waiting: deque[_Search | _Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        # A daemon: who forgets to close must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="edje-searches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Return how many requests wait."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Return whether requests are taken and answered."""
        return self._thread.is_alive() and not self._closed

    def submit(self, text: str, **options: Unpack[SearchOptions]) -> SearchFuture:
        """Ask for a search and return at once.

        Args:
            text: What the image shows.
            options: As `TwoStageRetriever.search`.

        Returns:
            What will hold the result, or the error that `TwoStageRetriever.search` raises; it can
            be cancelled until the search begins. Its callbacks run in the thread that searches.

        Raises:
            ConfigError: The text or an option cannot be used, or the batcher is closed.
            BusyError: As many requests wait as may.
        """
        check_texts("the query", [text])
        if options.get("filter") is not None:  # the caller may go on to change it
            options["filter"] = copy.deepcopy(options["filter"])
        search = _Search(text, options, self._retriever.check_options(**options))
        self._put(search)
        return search.future

    def search(self, text: str, **options: Unpack[SearchOptions]) -> SearchResult:
        """Search, and wait for the result; raises what `submit` and the search raise."""
        return self.submit(text, **options).result()

    async def asearch(self, text: str, **options: Unpack[SearchOptions]) -> SearchResult:
        """Search while the event loop goes on; raises what `submit` and the search raise.

        A task that is cancelled before its search begins takes it out of the line.
        """
        return await asyncio.wrap_future(self.submit(text, **options))

    def do(self, work: Callable[[], T]) -> Future[T]:
        """Let other work take its turn in the thread that searches.

        Args:
            work: Takes nothing; such as `lambda: retriever.search_by_image(image)`.

        Returns:
            What will hold what it returns or raises; it can be cancelled until the work begins.

        Raises:
            ConfigError: The batcher is closed.
            BusyError: As many requests wait as may.
        """
        job = _Job(work)
        self._put(job)
        return job.future

    def close(self, timeout: float | None = None) -> None:
        """Take no more requests, answer those that wait, and end; a second call does nothing.

        Args:
            timeout: Seconds to wait for that, at most; the rest is answered all the same.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:  # a callback may close, too
            self._thread.join(timeout)

    def __enter__(self) -> SearchBatcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _put(self, request: _Search | _Job) -> None:
        with self._changed:
            if self._closed:
                raise ConfigError("the batcher is closed; make another one")
            if self._max_waiting is not None and len(self._waiting) >= self._max_waiting:
                raise BusyError(len(self._waiting))
            self._waiting.append(request)
            self._changed.notify()

    def _work(self) -> None:
        while (first := self._next()) is not None:
            if isinstance(first, _Job):
                if first.future.set_running_or_notify_cancel():
                    _settle(first)
                continue
            searches = self._gather(first)
            running = [s for s in searches if s.future.set_running_or_notify_cancel()]
            if running:
                self._answer(running)

    def _next(self) -> _Search | _Job | None:
        """Wait for a request, and return the oldest; None once all is over."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            return self._waiting.popleft() if self._waiting else None

    def _gather(self, first: _Search) -> list[_Search]:
        """Return a search, and those that can be done with it."""
        searches, until = [first], first.arrived + self._max_wait
        with self._changed:
            while True:
                others: deque[_Search | _Job] = deque()
                for request in self._waiting:
                    fits = len(searches) < self._max_batch and first.is_like(request)
                    (searches if fits else others).append(request)  # type: ignore[arg-type]
                self._waiting = others
                left = until - time.perf_counter()
                if len(searches) >= self._max_batch or self._closed or left <= 0:
                    return searches
                self._changed.wait(left)

    def _answer(self, searches: Sequence[_Search]) -> None:
        """Do searches with equal options; never raises."""
        try:
            if self._observe is not None:
                self._observe(len(searches))
            begun = time.perf_counter()
            for search in searches:
                search.future.waited_ms = 1000 * (begun - search.arrived)
            texts = [search.text for search in searches]
            results = self._retriever.search_batch(texts, **_left(searches))
            answers = [*zip(searches, results, strict=True)]
        except Exception as error:
            # Which of them failed is not known; alone, the others succeed. What cannot be reached
            # cannot be reached by any of them, and each would wait for it.
            if len(searches) == 1 or isinstance(error, EngineUnavailableError):
                for search in searches:
                    search.future.set_exception(error)
                return
            for search in searches:
                self._answer([search])
        except BaseException as error:  # the thread must outlive it, or callers wait for ever
            for search in searches:
                search.future.set_exception(_ended(error))
        else:
            for search, result in answers:
                search.future.set_result(result)


def _settle(job: _Job) -> None:
    """Do other work; never raises."""
    try:
        result = job.work()
    except Exception as error:
        job.future.set_exception(error)
    except BaseException as error:
        job.future.set_exception(_ended(error))
    else:
        job.future.set_result(result)


def _ended(error: BaseException) -> EdjeError:
    return EdjeError(f"the thread that searches was to be ended by {error!r}")


def _left(searches: Sequence[_Search]) -> SearchOptions:
    """Return the options, with what is left of the budget of the one that waited longest."""
    first = searches[0]
    if first.settings["budget_ms"] is None:
        return first.options
    waited = max(search.future.waited_ms for search in searches)
    left = max(round(first.settings["budget_ms"] - waited, 1), _LEAST_MS)
    return cast("SearchOptions", {**first.options, "budget_ms": left})
