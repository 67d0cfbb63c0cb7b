"""Counter of started batches, in a module without torch, which its Ray actor does not need."""

from __future__ import annotations

from collections import Counter

__all__ = ["Tally"]


class Tally:
    """Count how often each batch was started, as Ray itself sets no limit; used as an actor."""

    def __init__(self) -> None:
        self._started: Counter[str] = Counter()

    def begin(self, batch: str) -> int:
        """Count a start of a batch and return how often it was started, including this time."""
        self._started[batch] += 1
        return self._started[batch]

    def end(self, batch: str) -> None:
        """Remove the count of a batch that is finished."""
        del self._started[batch]
