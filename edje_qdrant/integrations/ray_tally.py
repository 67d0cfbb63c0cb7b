"""Count how often batches were begun; by itself, as its actor has no use for torch."""

from __future__ import annotations

from collections import Counter

__all__ = ["Tally"]


class Tally:
    """Count, in an actor of its own, how often each batch was begun: Ray does so without end."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, batch: str) -> int:
        """Return how often it was begun, this time included."""
        self._begun[batch] += 1
        return self._begun[batch]

    def end(self, batch: str) -> None:
        """Forget a batch that is done."""
        del self._begun[batch]
