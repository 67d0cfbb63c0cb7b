"""Whether the index answers: probes, and a circuit breaker for the requests that need it."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from edje_qdrant.errors import EngineUnavailableError, RateLimitedError

__all__ = ["Availability"]

_log = logging.getLogger("edje_qdrant.web")

# Seconds for which an answer is remembered, and between probes while the index is away.
_KEPT = 1.0

# Seconds that a caller of `check` waits for a probe; orchestrators often allow 1 s in all.
_PATIENCE = 0.8

# Seconds without an answer after which requests are refused: a busy server may take one or two.
_SILENCE = 2.5


class Availability:
    """Know whether the index answers.

    Probes run in a thread of their own, one at a time, however many ask. Only a probe decides that
    the index is away or back: a request may also fail because its own time limit was short. While
    the index is away, a probe follows each second.

    Args:
        probe: Sends the index a short request; raises what is wrong. Its argument says whether
            points must be read, too.
        changed: Called with whether the index answers, when that has changed.
        clock: Returns seconds.

    Attributes:
        away: Set while the index is away.
    """

    def __init__(
        self,
        probe: Callable[[bool], None],
        changed: Callable[[bool], None] = lambda _: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.away = threading.Event()
        self._probe, self._changed, self._clock = probe, changed, clock
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._error: Exception | None = None
        self._running = False  # whether the thread runs
        self._begun = self._ended = -math.inf  # of the last probe
        self._answer: Future[None] | None = None  # of the probe under way

    @property
    def error(self) -> Exception | None:
        """Return why requests cannot be answered; None if they can, as far as is known."""
        if self._error is None and self._silence() > _SILENCE:
            return _silent(self._silence())
        return self._error

    def look(self, *, suspect: bool = False) -> None:
        """Start a probe, unless one is under way or the last one ended less than a second ago.

        Args:
            suspect: Whether a request has just failed: then probe at once, and read points, too.
        """
        with self._lock:
            fresh = self._clock() - self._ended < _KEPT
            if self._closed.is_set() or self._running or (fresh and not suspect):
                return
            self._running = True
            self._begin()
        threading.Thread(
            target=self._work, args=(suspect,), name="edje-probes", daemon=True
        ).start()

    async def check(self) -> Exception | None:
        """Return, in less than a second, why requests cannot be answered; None if they can.

        Unlike `error`, it asks the index if no answer is known, and says so if none comes.
        """
        self.look()
        answer = self._answer
        if answer is not None and (left := _PATIENCE - self._silence()) > 0:
            await asyncio.wait({asyncio.wrap_future(answer)}, timeout=left)
        if answer is not None and not answer.done():
            return self.error or _silent(self._silence())
        return self.error

    def close(self) -> None:
        """End; a probe under way is not waited for."""
        self._closed.set()

    def _silence(self) -> float:
        """Return for how many seconds a probe has waited for its answer; 0 if none is under way."""
        return self._clock() - self._begun if self._answer is not None else 0.0

    def _begin(self) -> None:
        answer: Future[None] = Future()
        answer.set_running_or_notify_cancel()  # a request that is cancelled does not cancel it
        self._begun, self._answer = self._clock(), answer

    def _work(self, points: bool) -> None:
        while True:
            try:
                self._probe(points)
            except RateLimitedError:
                error = None  # it answers
            except Exception as raised:
                error = raised
            else:
                error = None
            if self._closed.is_set():
                return
            self._note(error)
            if error is None:
                return
            if self._closed.wait(_KEPT):
                return
            points = True
            with self._lock:
                self._begin()

    def _note(self, error: Exception | None) -> None:
        before = self._error
        with self._lock:
            answer, self._answer = self._answer, None
            self._error, self._ended = error, self._clock()
            self._running = error is not None
        if error is None:
            self.away.clear()
        else:
            self.away.set()
        assert answer is not None
        answer.set_result(None)
        if (before is None) != (error is None):
            self._changed(error is None)
            if error is None:
                _log.info("the index answers again")
        if error is not None and type(before) is not type(error):
            _log.error("the index cannot be asked; trying again every second", exc_info=error)


def _silent(seconds: float) -> EngineUnavailableError:
    return EngineUnavailableError(f"the index has not answered for {seconds:.1f} s")
