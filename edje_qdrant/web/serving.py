"""What a service serves, which may change between requests; each request keeps what it began with.

A retriever and the batcher of its searches belong together. A request holds both until it has
ended, and so does work that it left to another thread. What was served before is closed once
nothing holds it any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

from edje_qdrant.search.batcher import SearchBatcher
from edje_qdrant.search.retriever import TwoStageRetriever

__all__ = ["HoldingMiddleware", "Served", "Serving"]

T = TypeVar("T")
F = TypeVar("F", bound="Future[Any]")


@dataclass(eq=False, slots=True)
class Serving:
    """Hold a retriever and the batcher of its searches.

    Attributes:
        retriever: Answers the searches.
        batcher: Merges them.
        can_explain: Whether its model's matches can be explained.
        holders: Requests, and work in other threads, that use it.
    """

    retriever: TwoStageRetriever
    batcher: SearchBatcher
    can_explain: bool
    holders: int = 0


# What the current request began with.
_held: ContextVar[tuple[Served, Serving] | None] = ContextVar("held", default=None)


class Served:
    """Hold what is served now, and what was served before, until its last request has ended.

    Args:
        first: What is served at first.
        close: Closes what is not served any more; called in a thread of its own.
    """

    def __init__(self, first: Serving, close: Callable[[Serving], None]) -> None:
        self._now, self._close = first, close
        self._lock = threading.Lock()
        self._closing: list[threading.Thread] = []

    @property
    def current(self) -> Serving:
        """Return what the current request began with; outside of requests, what is served now."""
        held = _held.get()
        return held[1] if held is not None and held[0] is self else self._now

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let all that is done in the block use what is served at its beginning."""
        serving = self._take()
        token = _held.set((self, serving))
        try:
            yield
        finally:
            _held.reset(token)
            self._give_back(serving)

    def submit(self, submit: Callable[[Callable[[], T]], F], work: Callable[[], T]) -> F:
        """Submit work to another thread, where it uses what is current now.

        It is held until the work is done or cancelled, even if its request has ended.

        Args:
            submit: Takes work; returns its future.
            work: The work.
        """
        serving = self._take()
        context = copy_context()
        context.run(_held.set, (self, serving))
        try:
            future = submit(lambda: context.run(work))
        except BaseException:
            self._give_back(serving)
            raise
        future.add_done_callback(lambda _: self._give_back(serving))
        return future

    def change(self, new: Serving) -> None:
        """Serve something else from the next request on."""
        with self._lock:
            before, self._now = self._now, new
            self._close_unused(before)

    def join(self) -> None:
        """Wait until what was served before is closed."""
        for thread in self._closing:
            thread.join()

    def _take(self) -> Serving:
        with self._lock:
            serving = self.current
            serving.holders += 1
            return serving

    def _give_back(self, serving: Serving) -> None:
        with self._lock:
            serving.holders -= 1
            self._close_unused(serving)

    def _close_unused(self, serving: Serving) -> None:
        if serving is not self._now and serving.holders == 0:
            thread = threading.Thread(
                target=self._close, args=(serving,), name="edje-closing", daemon=True
            )
            self._closing.append(thread)
            thread.start()


class HoldingMiddleware:
    """ASGI middleware: each request uses what is served when it begins.

    Args:
        app: The application.
        served: What is served.
    """

    def __init__(self, app: ASGIApp, served: Served) -> None:
        self._app, self._served = app, served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._served.held():
            await self._app(scope, receive, send)
