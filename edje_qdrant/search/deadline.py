"""How much of a time budget is left, and what can be done in it."""

from __future__ import annotations

import math
import time

__all__ = ["Deadline", "Pace"]


class Deadline:
    """Count down from when it is made.

    Args:
        milliseconds: The budget; None for all the time there is.
    """

    def __init__(self, milliseconds: float | None) -> None:
        self.milliseconds = milliseconds
        seconds = math.inf if milliseconds is None else milliseconds / 1000
        self._end = time.perf_counter() + seconds

    @property
    def left(self) -> float:
        """Return the seconds left, below 0 once it is over."""
        return self._end - time.perf_counter()


# Slices of so many pairs and fewer tell what a slice costs however small it is.
_SMALL = 8

# What is left of the time a slice is believed to take, each time it kept one from being tried.
_FORGIVEN = 0.8


class Pace:
    """Remember how long slices of pairs took lately: a part for each slice, and one for each pair.

    The two are told apart by small slices and large ones, once both have been seen.
    """

    def __init__(self) -> None:
        self._small: tuple[float, float] | None = None  # pairs and seconds, lately
        self._large: tuple[float, float] | None = None

    def observe(self, pairs: int, seconds: float) -> None:
        """Learn what a slice took."""
        if pairs <= _SMALL:
            self._small = _mean(self._small, pairs, seconds)
        else:
            self._large = _mean(self._large, pairs, seconds)

    def pairs_in(self, seconds: float) -> int | None:
        """Return how many pairs a slice of that many seconds can hold; None if none was seen."""
        if self._small is None and self._large is None:
            return None
        fixed, each = self._costs()
        if seconds < fixed:
            return 0
        return int((seconds - fixed) / each + 1e-6) if each > 0 else 1 << 30

    def forgive(self) -> None:
        """Believe slices to be a little quicker: none is tried, so nothing else would tell."""
        for name in ("_small", "_large"):
            seen = getattr(self, name)
            if seen is not None:
                setattr(self, name, (seen[0], seen[1] * _FORGIVEN))

    def _costs(self) -> tuple[float, float]:
        """Return the seconds of any slice, and those of each pair in it."""
        small, large = self._small, self._large
        if small is None or large is None:
            pairs, seconds = small or large or (1.0, 0.0)
            return 0.0, seconds / pairs
        each = (large[1] - small[1]) / (large[0] - small[0])
        # A slow moment can make a small slice take longer than a large one.
        each = min(max(each, 0.0), large[1] / large[0])
        return large[1] - each * large[0], each


def _mean(seen: tuple[float, float] | None, pairs: int, seconds: float) -> tuple[float, float]:
    if seen is None:
        return float(pairs), seconds
    return (seen[0] + pairs) / 2, (seen[1] + seconds) / 2
