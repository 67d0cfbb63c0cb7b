"""Searches of many callers at a time, merged into batches that one thread works through."""

from __future__ import annotations

import asyncio
import copy
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import cast

from typing_extensions import Unpack

from edje_qdrant.errors import ConfigError, EdjeError, EngineUnavailableError
from edje_qdrant.queries import check_number
from edje_qdrant.retriever import TwoStageRetriever
from edje_qdrant.search.settings import SearchOptions, SearchSettings, check_texts
from edje_qdrant.types import SearchResult

__all__ = ["SearchBatcher"]

# What is left of a budget that ended while a request waited: enough to be told so.
_LEAST_MS = 1e-3


@dataclass(slots=True)
class _Request:
    """Hold what one caller asked for, and where its answer goes."""

    text: str
    options: SearchOptions
    settings: SearchSettings
    future: Future[SearchResult] = field(default_factory=Future)
    arrived: float = field(default_factory=time.perf_counter)


class SearchBatcher:
    """Merge searches that callers ask for at about the same time.

    One thread takes what has arrived, up to `max_batch` searches, and does those with equal options
    as one `search_batch`. While it works, further requests gather; where it is idle, the first
    request waits `max_wait_ms` at most for company. An error of one search, such as damaged tokens
    of its candidates, does not touch the others that were merged with it.

    A budget counts from when a search is asked for, waiting included; searches that were merged
    share what is left of it.

    Args:
        retriever: What searches; it stays open when the batcher is closed.
        max_batch: Searches done at a time, at most.
        max_wait_ms: Milliseconds that a search waits for others.

    Raises:
        ConfigError: A number cannot be used.

    Example:
        >>> with SearchBatcher(retriever) as batcher:
        ...     result = batcher.search("a red kite", top_k=5)  # from any thread
        ...     futures = [batcher.submit(text) for text in texts]
    """

    def __init__(
        self, retriever: TwoStageRetriever, *, max_batch: int = 32, max_wait_ms: float = 3.0
    ) -> None:
        check_number("max_batch", max_batch)
        if (
            isinstance(max_wait_ms, bool)
            or not isinstance(max_wait_ms, int | float)
            or not math.isfinite(max_wait_ms)
            or max_wait_ms < 0
        ):
            raise ConfigError(f"max_wait_ms is {max_wait_ms!r}; give milliseconds, 0 or more")
        self._retriever = retriever
        self._max_batch, self._max_wait = max_batch, max_wait_ms / 1000
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closed = False
        # A daemon: who forgets to close must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="edje-searches", daemon=True)
        self._thread.start()

    def submit(self, text: str, **options: Unpack[SearchOptions]) -> Future[SearchResult]:
        """Ask for a search and return at once.

        Args:
            text: What the picture shows.
            options: As `TwoStageRetriever.search`.

        Returns:
            What will hold the result, or the error that `TwoStageRetriever.search` raises; it can
            be cancelled until the search begins. Its callbacks run in the thread that searches.

        Raises:
            ConfigError: The text or an option cannot be used, or the batcher is closed.
        """
        check_texts([text])
        if options.get("filter") is not None:  # the caller may go on to change it
            options["filter"] = copy.deepcopy(options["filter"])
        request = _Request(text, options, self._retriever.check_options(**options))
        with self._changed:
            if self._closed:
                raise ConfigError("the batcher is closed; make another one")
            self._waiting.append(request)
            self._changed.notify()
        return request.future

    def search(self, text: str, **options: Unpack[SearchOptions]) -> SearchResult:
        """Search, and wait for the result; raises what `TwoStageRetriever.search` raises."""
        return self.submit(text, **options).result()

    async def asearch(self, text: str, **options: Unpack[SearchOptions]) -> SearchResult:
        """Search while the event loop goes on; raises what `TwoStageRetriever.search` raises.

        A task that is cancelled before its search begins takes it out of the line.
        """
        return await asyncio.wrap_future(self.submit(text, **options))

    def close(self) -> None:
        """Take no more searches, answer those that wait, and end; a second call does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:  # a callback may close, too
            self._thread.join()

    def __enter__(self) -> SearchBatcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        while batch := self._gather():
            running = [r for r in batch if r.future.set_running_or_notify_cancel()]
            for alike in _alike(running):
                self._answer(alike)

    def _gather(self) -> list[_Request]:
        """Wait for requests and take some, the oldest first; none once all is over."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if not self._waiting:
                return []
            until = self._waiting[0].arrived + self._max_wait
            while len(self._waiting) < self._max_batch and not self._closed:
                left = until - time.perf_counter()
                if left <= 0 or not self._changed.wait(left):
                    break
            count = min(self._max_batch, len(self._waiting))
            return [self._waiting.popleft() for _ in range(count)]

    def _answer(self, requests: Sequence[_Request]) -> None:
        """Do the searches of requests with equal options; never raises."""
        try:
            texts = [request.text for request in requests]
            results = self._retriever.search_batch(texts, **_left(requests))
        except Exception as error:
            # Which of them failed is not known; alone, the others succeed. What cannot be reached
            # cannot be reached by any of them, and each would wait for it.
            if len(requests) == 1 or isinstance(error, EngineUnavailableError):
                for request in requests:
                    request.future.set_exception(error)
                return
            for request in requests:
                self._answer([request])
        except BaseException as error:  # the thread must outlive it, or callers wait for ever
            for request in requests:
                request.future.set_exception(EdjeError(f"the search was ended by {error!r}"))
        else:
            for request, result in zip(requests, results, strict=True):
                request.future.set_result(result)


def _alike(requests: Sequence[_Request]) -> list[list[_Request]]:
    """Group requests by their options; filters can be compared, but have no hash."""
    groups: list[list[_Request]] = []
    for request in requests:
        for group in groups:
            if _equal(group[0].settings, request.settings):
                group.append(request)
                break
        else:
            groups.append([request])
    return groups


def _equal(one: SearchSettings, other: SearchSettings) -> bool:
    # As text as well: Python's 1 and True are equal, and a filter tells them apart.
    return repr(one) == repr(other) and one == other


def _left(requests: Sequence[_Request]) -> SearchOptions:
    """Return the options, with what is left of the budget of the one that waited longest."""
    first = requests[0]
    if first.settings.budget_ms is None:
        return first.options
    waited = 1000 * (time.perf_counter() - min(request.arrived for request in requests))
    left = max(first.settings.budget_ms - waited, _LEAST_MS)
    return cast("SearchOptions", {**first.options, "budget_ms": left})
