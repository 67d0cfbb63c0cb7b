"""How much of a time budget is left."""

from __future__ import annotations

import math
import time

__all__ = ["Deadline"]


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
