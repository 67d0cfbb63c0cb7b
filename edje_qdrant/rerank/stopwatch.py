"""A stopwatch that divides the wall-clock time of a search among its stages."""

from __future__ import annotations

import time
from typing import Literal

from edje_qdrant.types import Timings

__all__ = ["Stage", "Stopwatch"]

Stage = Literal["encode", "retrieve", "fetch", "rerank"]


class Stopwatch:
    """Measure the stages of a search; one stage runs at a time.

    Examples:
        >>> watch = Stopwatch()
        >>> watch.start("encode")
        >>> watch.start("retrieve")  # ends "encode"
        >>> timings = watch.timings()  # ends "retrieve"
        >>> timings.rerank
        0.0
    """

    def __init__(self) -> None:
        self._seconds: dict[Stage, float] = {"encode": 0, "retrieve": 0, "fetch": 0, "rerank": 0}
        self._running: Stage | None = None
        self._since = 0.0

    def start(self, stage: Stage) -> None:
        """End the running stage and start another one; a stage can run several times."""
        self._stop()
        self._running = stage

    def timings(self, queries: int = 1) -> Timings:
        """End the running stage and return the milliseconds of all stages.

        Args:
            queries: Number of queries that were processed together; each gets an equal share.
        """
        self._stop()
        return Timings(**{stage: 1000 * s / queries for stage, s in self._seconds.items()})

    def _stop(self) -> None:
        now = time.perf_counter()
        if self._running is not None:
            self._seconds[self._running] += now - self._since
        self._running, self._since = None, now
