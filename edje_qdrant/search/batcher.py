"""Merge concurrent searches of many callers into batches."""

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
from edje_qdrant.errors import (
    BusyError,
    CollectionNotFoundError,
    ConfigError,
    EdjeError,
    EngineUnavailableError,
    KeyRefusedError,
)
from edje_qdrant.search.options import SearchOptions
from edje_qdrant.search.results import SearchResult
from edje_qdrant.search.retriever import TwoStageRetriever

__all__ = ["SearchBatcher", "SearchFuture"]

T = TypeVar("T")

# Searches of which a batch takes half, if a thread is idle that can take the rest.
_SPLIT = 8

# Errors that every search of a batch would meet.
_FOR_ALL = (EngineUnavailableError, CollectionNotFoundError, KeyRefusedError)

# Budget of a search whose own budget ended while it waited; its result says that it is degraded.
_LEAST_MS = 1e-3


class SearchFuture(Future[SearchResult]):
    """Future of a search's result.

    Attributes:
        waited_ms: Milliseconds between submission and start; 0 until the search starts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waited_ms = 0.0


@dataclass(slots=True, eq=False)
class _Search:
    """A submitted search and its future."""

    text: str
    options: SearchOptions
    settings: SearchOptions
    future: SearchFuture = field(default_factory=SearchFuture)
    arrived: float = field(default_factory=time.perf_counter)
    # Settings as text as well: 1 and True are equal in Python, but different in a filter.
    settings_text: str = field(init=False)

    def __post_init__(self) -> None:
        self.settings_text = repr(self.settings)

    def is_like(self, other: _Search | _Job) -> bool:
        """Return whether both can be in one batch; filters can be compared, but not hashed."""
        return (
            isinstance(other, _Search)
            and self.settings_text == other.settings_text
            and self.settings == other.settings
        )


@dataclass(slots=True, eq=False)
class _Job:
    """Other submitted work and its future."""

    work: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)


class SearchBatcher:
    """Merge concurrent searches of several threads or tasks into batches.

    A thread processes the requests, oldest first. It takes up to `max_batch` searches with equal
    options and runs them as one `search_batch`. Further requests queue up while it works; if it is
    idle, the first request waits up to `max_wait_ms` for others. With a model on a GPU there are
    two such threads, so that one encodes, searches and ranks while the GPU scores the other's
    batch. An error of one search, such as damaged tokens of its candidates, does not affect the
    others in its batch. Other work with the model can run in turn with the searches (`do`).

    A budget counts from the submission of a search, including the time in the queue; the searches
    of a batch share the smallest remaining budget.

    Args:
        retriever: Searches; it stays open when the batcher is closed.
        max_batch: Maximum number of searches in a batch.
        max_wait_ms: Milliseconds that a search waits for others.
        max_waiting: Maximum number of queued requests, unlimited by default; more are refused.
        observe: Called with the size of each batch before it runs, in the searching thread.
        threads: Batches at a time; by default 2 with a model on a GPU, else 1.

    Raises:
        ConfigError: A number is invalid.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> from edje_qdrant import EDJEModel, ImageCollection, SearchBatcher, TwoStageRetriever
        >>> folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        >>> model = EDJEModel.from_pretrained("demo", device="cpu")
        >>> collection = ImageCollection.create(folder.name, "images", model.contract())
        >>> ids = [f"00000000-0000-4000-8000-{number:012d}" for number in range(3)]
        >>> images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "green")]
        >>> collection.add(ids, model.encode_images(images), [{}, {}, {}])
        >>> retriever = TwoStageRetriever(collection, model)
        >>> with retriever, SearchBatcher(retriever) as batcher:
        ...     future = batcher.submit("a red star", top_k=2)  # from any thread
        ...     result = batcher.search("a blue ring", top_k=2)  # waits for the result
        ...     len(future.result()), len(result)
        (2, 2)
        >>> folder.cleanup()
    """

    def __init__(
        self,
        retriever: TwoStageRetriever,
        *,
        max_batch: int = 32,
        max_wait_ms: float = 3.0,
        max_waiting: int | None = None,
        observe: Callable[[int], None] | None = None,
        threads: int | None = None,
    ) -> None:
        check_number("max_batch", max_batch)
        check_number("threads", threads, optional=True)
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
        self._searching = 0  # threads with a batch
        self._gathering = self._doing = False  # whether a thread gathers one, or does other work
        if threads is None:
            threads = 2 if retriever.uses_gpu else 1
        # Daemon threads, so that a batcher that was not closed does not keep the process alive.
        self._threads = [
            threading.Thread(target=self._work, name="edje-searches", daemon=True)
            for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Return the number of queued requests."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Return whether requests are accepted and answered."""
        return not self._closed and all(thread.is_alive() for thread in self._threads)

    def submit(self, text: str, **options: Unpack[SearchOptions]) -> SearchFuture:
        """Submit a search and return at once.

        Args:
            text: Description of the image.
            options: See `SearchOptions`.

        Returns:
            The future of the result, or of the error that `TwoStageRetriever.search` raises; it can
            be cancelled until the search starts. Its callbacks run in the searching thread.

        Raises:
            ConfigError: The text or an option is invalid, or the batcher is closed.
            BusyError: The queue is full.
        """
        check_texts("the query", [text])
        if options.get("filter") is not None:  # the caller may change it later
            options["filter"] = copy.deepcopy(options["filter"])
        search = _Search(text, options, self._retriever.check_options(**options))
        self._put(search)
        return search.future

    def search(self, text: str, **options: Unpack[SearchOptions]) -> SearchResult:
        """Search and wait for the result; raises the errors of `submit` and of the search."""
        return self.submit(text, **options).result()

    async def asearch(self, text: str, **options: Unpack[SearchOptions]) -> SearchResult:
        """Search without blocking the event loop; raises the errors of `submit` and of the search.

        If the task is cancelled before its search starts, the search is removed from the queue.
        """
        return await asyncio.wrap_future(self.submit(text, **options))

    def do(self, work: Callable[[], T]) -> Future[T]:
        """Submit other work with the model, which runs while no search does.

        Args:
            work: A function without arguments, such as `lambda: retriever.search_by_image(image)`.

        Returns:
            The future of what it returns or raises; it can be cancelled until the work starts.

        Raises:
            ConfigError: The batcher is closed.
            BusyError: The queue is full.
        """
        job = _Job(work)
        self._put(job)
        return job.future

    def close(self, timeout: float | None = None) -> None:
        """Refuse new requests, answer the queued ones, and end; a second call does nothing.

        Args:
            timeout: Maximum seconds to wait for that; the rest is answered in the background.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        until = None if timeout is None else time.perf_counter() + timeout
        for thread in self._threads:
            if threading.current_thread() is not thread:  # a callback may call close, too
                thread.join(None if until is None else max(until - time.perf_counter(), 0.0))

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
            self._changed.notify_all()

    def _work(self) -> None:
        while (first := self._next()) is not None:
            try:
                if isinstance(first, _Job):
                    if first.future.set_running_or_notify_cancel():
                        _settle(first)
                    continue
                searches = self._gather(first)
                running = [s for s in searches if s.future.set_running_or_notify_cancel()]
                if running:
                    self._answer(running)
            finally:
                self._end(first)

    def _next(self) -> _Search | _Job | None:
        """Wait for a request that may start, and take the oldest; None once closed and empty."""
        with self._changed:
            while not self._may_start():
                if self._closed and not self._waiting:
                    return None
                self._changed.wait()
            first = self._waiting.popleft()
            if isinstance(first, _Job):
                self._doing = True
            else:
                self._searching += 1
                self._gathering = True
            return first

    def _may_start(self) -> bool:
        """Return whether the oldest request may start.

        One thread gathers at a time, or both would get small batches; other work runs by itself.
        """
        if not self._waiting or self._gathering or self._doing:
            return False
        return not isinstance(self._waiting[0], _Job) or self._searching == 0

    def _end(self, first: _Search | _Job) -> None:
        with self._changed:
            if isinstance(first, _Job):
                self._doing = False
            else:
                self._searching -= 1
            self._changed.notify_all()

    def _gather(self, first: _Search) -> list[_Search]:
        """Return a search and the queued searches that can be in its batch."""
        searches, until = [first], first.arrived + self._max_wait
        with self._changed:
            while True:
                left = until - time.perf_counter()
                alike = 1 + sum(map(first.is_like, self._waiting))
                if alike >= self._max_batch or self._closed or left <= 0:
                    break
                self._changed.wait(left)
            size = min(alike, self._max_batch)
            if size >= _SPLIT and self._searching < len(self._threads):
                size = -(-size // 2)
            others: deque[_Search | _Job] = deque()
            for request in self._waiting:
                fits = len(searches) < size and first.is_like(request)
                (searches if fits else others).append(request)  # type: ignore[arg-type]
            self._waiting, self._gathering = others, False
            self._changed.notify_all()
            return searches

    def _answer(self, searches: Sequence[_Search]) -> None:
        """Run searches with equal options as one batch; never raises."""
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
            # Run each search on its own to find the one that failed. If the engine is unavailable,
            # or the collection is gone, all of them would fail, each after a timeout.
            if len(searches) == 1 or isinstance(error, _FOR_ALL):
                for search in searches:
                    search.future.set_exception(error)
                return
            for search in searches:
                self._answer([search])
        except BaseException as error:  # if the thread ended, callers would wait forever
            for search in searches:
                search.future.set_exception(_ended(error))
        else:
            for search, result in answers:
                search.future.set_result(result)


def _settle(job: _Job) -> None:
    """Run other work; never raises."""
    try:
        result = job.work()
    except Exception as error:
        job.future.set_exception(error)
    except BaseException as error:
        job.future.set_exception(_ended(error))
    else:
        job.future.set_result(result)


def _ended(error: BaseException) -> EdjeError:
    return EdjeError(f"the searching thread was interrupted by {error!r}")


def _left(searches: Sequence[_Search]) -> SearchOptions:
    """Return the common options, with the smallest remaining budget."""
    first = searches[0]
    if first.settings["budget_ms"] is None:
        return first.options
    waited = max(search.future.waited_ms for search in searches)
    left = max(round(first.settings["budget_ms"] - waited, 1), _LEAST_MS)
    return cast("SearchOptions", {**first.options, "budget_ms": left})
