"""A time budget: how much of it is left, and how many pairs can be scored in it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

__all__ = ["Deadline", "Pace"]


class Deadline:
    """Count down from the moment of construction.

    Args:
        milliseconds: The budget; None for no limit.
    """

    def __init__(self, milliseconds: float | None) -> None:
        self.milliseconds = milliseconds
        seconds = math.inf if milliseconds is None else milliseconds / 1000
        self._end = time.perf_counter() + seconds

    @property
    def left(self) -> float:
        """Return the seconds left; negative once the budget is used up."""
        return self._end - time.perf_counter()

    @property
    def timeout(self) -> float | None:
        """Return the seconds left as the timeout of a request; None without a limit."""
        return None if self.milliseconds is None else max(self.left, 0.0)


# Slices of at most this many pairs show the fixed cost of a slice.
_SMALL = 8

# Factor that `Pace.relax` applies to the remembered times.
_RELAX = 0.8


@dataclass(frozen=True, slots=True)
class _Slices:
    """Running mean of the slices of one kind: their pairs and their seconds."""

    pairs: float
    seconds: float

    def mean_with(self, pairs: int, seconds: float) -> _Slices:
        return _Slices((self.pairs + pairs) / 2, (self.seconds + seconds) / 2)


@dataclass(frozen=True, slots=True)
class _Cost:
    """Estimated seconds of a slice: a fixed part, and a part for each pair."""

    fixed: float
    per_pair: float


class Pace:
    """Estimate the time of a slice of pairs from recent slices.

    The estimate is a fixed cost for each slice plus a cost for each pair. The two can be told apart
    once small and large slices have been observed.
    """

    def __init__(self) -> None:
        self._small: _Slices | None = None
        self._large: _Slices | None = None

    def observe(self, pairs: int, seconds: float) -> None:
        """Record how long a slice took."""
        if pairs <= _SMALL:
            self._small = _updated(self._small, pairs, seconds)
        else:
            self._large = _updated(self._large, pairs, seconds)

    def pairs_in(self, seconds: float) -> int | None:
        """Return how many pairs fit into a slice of that many seconds; None before any slice."""
        if self._small is None and self._large is None:
            return None
        cost = self._cost()
        if seconds < cost.fixed:
            return 0
        if cost.per_pair <= 0:
            return 1 << 30
        return int((seconds - cost.fixed) / cost.per_pair + 1e-6)

    def relax(self) -> None:
        """Lower the estimate a little.

        Call this when the estimate prevented a slice: without new observations, one slow slice
        would otherwise prevent all later ones.
        """
        if self._small is not None:
            self._small = _Slices(self._small.pairs, self._small.seconds * _RELAX)
        if self._large is not None:
            self._large = _Slices(self._large.pairs, self._large.seconds * _RELAX)

    def _cost(self) -> _Cost:
        small, large = self._small, self._large
        if small is None or large is None:
            seen = small or large or _Slices(1.0, 0.0)
            return _Cost(0.0, seen.seconds / seen.pairs)
        per_pair = (large.seconds - small.seconds) / (large.pairs - small.pairs)
        # Under load, a small slice can take longer than a large one.
        per_pair = min(max(per_pair, 0.0), large.seconds / large.pairs)
        return _Cost(large.seconds - per_pair * large.pairs, per_pair)


def _updated(seen: _Slices | None, pairs: int, seconds: float) -> _Slices:
    return _Slices(pairs, seconds) if seen is None else seen.mean_with(pairs, seconds)
