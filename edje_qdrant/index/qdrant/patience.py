"""How long calls to a server may take, and how long a long job waits for one that is away."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import TypeVar

__all__ = ["Patience", "TimeLimit", "call_within", "current_limit"]

T = TypeVar("T")

# A call that has not succeeded for this long is told of, in seconds.
_TOLD_AFTER = 5.0

# Seconds between looks at whether a server is known to be away.
_AWAY_LOOKED_AT = 0.25

_limit: ContextVar[TimeLimit | None] = ContextVar("time_limit", default=None)


def current_limit() -> TimeLimit | None:
    """Return the innermost time limit of this thread or task."""
    return _limit.get()


class TimeLimit:
    """Limit the seconds that a server's calls take together; a context manager, usable repeatedly.

    Only the time in calls counts, their failed tries and pauses included; that of a model between
    two calls does not. A limit inside another never extends it.

    Args:
        seconds: For all calls together.
        queries: Searches that share the calls. An answer may take this many times as long, but a
            server that does not answer is not waited for longer.
        left: Returns the seconds left by another clock, such as that of a budget.
    """

    def __init__(
        self, seconds: float, queries: int = 1, left: Callable[[], float] | None = None
    ) -> None:
        self._seconds, self._queries, self._left = seconds, max(1, queries), left
        self._outer: list[tuple[TimeLimit | None, Token[TimeLimit | None]]] = []
        self._lock = threading.Lock()

    @property
    def left(self) -> float:
        """Return the seconds left; 0 or less once they are used up."""
        seconds = self._seconds if self._left is None else min(self._seconds, self._left())
        outer = self._outer[-1][0] if self._outer else None
        return seconds if outer is None else min(seconds, outer.left)

    def require_left(self) -> float:
        """Return the seconds left.

        Raises:
            TimeoutError: None are; nothing is to be sent.
        """
        left = self.left
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    def spend(self, seconds: float, *, answered: bool) -> None:
        """Count the time of a call or a pause."""
        with self._lock:
            self._seconds -= seconds / self._queries if answered else seconds
        outer = self._outer[-1][0] if self._outer else None
        if outer is not None:
            outer.spend(seconds, answered=answered)

    def __enter__(self) -> TimeLimit:
        outer = _limit.get()
        self._outer.append((None if outer is self else outer, _limit.set(self)))
        return self

    def __exit__(self, *_: object) -> None:
        _limit.reset(self._outer.pop()[1])


def call_within(
    seconds: float, function: Callable[[], T], away: threading.Event | None = None
) -> T:
    """Call a function in a thread and wait for it no longer than some seconds.

    A client's own time limits are for each part of an answer, and do not cover the look-up of a
    name. A call that is given up ends by those limits.

    Args:
        seconds: To wait.
        function: The function.
        away: Is set when the wait is to end, too.

    Raises:
        TimeoutError: The time is over, or `away` was set.
    """
    from contextvars import copy_context

    answers: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()
    context = copy_context()

    def call() -> None:
        try:
            answers.append(context.run(function))
        except BaseException as error:  # raised in the calling thread
            errors.append(error)
        done.set()

    threading.Thread(target=call, name="edje-asking", daemon=True).start()
    until = time.monotonic() + seconds
    step = seconds if away is None else _AWAY_LOOKED_AT
    while not done.wait(max(min(step, until - time.monotonic()), 0)):
        if time.monotonic() >= until or (away is not None and away.is_set()):
            raise TimeoutError("timed out")
    if errors:
        raise errors[0]
    return answers[0]


class Patience:
    """Wait for a server that is away, for all calls of a connection, from any thread.

    Args:
        seconds: To wait at most, from the first failure until the next answer.
        address: Named in what is told.
    """

    def __init__(self, seconds: float, address: str) -> None:
        self.seconds = seconds
        self._address = address
        self._lock = threading.Lock()
        self._since: float | None = None
        self._told = False
        self._is_over = threading.Event()

    def failed(self, began: float, reason: str) -> float:
        """Count a failure; return the seconds for which to wait further, 0 or less for none.

        Args:
            began: When the call began, by `time.monotonic`.
            reason: What the server does, and what it said.
        """
        if self._is_over.is_set():
            return 0.0
        now = time.monotonic()
        with self._lock:
            if self._since is None:
                self._since = began
            left = self._since + self.seconds - now
            tell = not self._told and now - self._since >= _TOLD_AFTER and left > 0
            self._told |= tell
        if tell:
            _tell(f"Qdrant at {self._address} {reason}: waiting for it, {left:.0f} s at most")
        return left

    def pause(self, seconds: float) -> None:
        """Wait before another try, or until `give_up`."""
        self._is_over.wait(seconds)

    def give_up(self) -> None:
        """End the waiting of all threads; their calls fail."""
        self._is_over.set()

    @property
    def is_over(self) -> bool:
        """Return whether `give_up` was called."""
        return self._is_over.is_set()

    def answered(self) -> None:
        """Count an answer: the server is there."""
        if self._since is None:
            return
        with self._lock:
            since, self._since = self._since, None
            told, self._told = self._told, False
        if told and since is not None:
            waited = time.monotonic() - since
            _tell(f"Qdrant at {self._address} answers again after {waited:.0f} s: going on")


def _tell(line: str) -> None:
    """Write a line to the screen, above the progress bars that are shown there."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)
