"""Stage 1 behind one protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.types import Candidate, Point

__all__ = ["TOKENS_KEY", "VectorIndex"]

#: The payload's reserved key. `_edje.tokens`, where there is one, is never returned by `search`.
TOKENS_KEY = "_edje"


class VectorIndex(Protocol):
    """Hold one vector and one payload for each picture, and find the nearest by cosine."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Return the JSON object given at create."""

    def upsert(self, points: Sequence[Point]) -> None:
        """Write points, replacing those with the same id; visible to searches on return."""

    def flush(self) -> None:
        """Make everything written so far survive a killed process."""

    def optimize(self) -> None:
        """Build the search graph where the engine does so on request."""

    def existing(self, image_ids: Sequence[str]) -> set[str]:
        """Return those of the ids that are stored."""

    def search(self, vectors: NDArray[np.float32], limit: int) -> list[list[Candidate]]:
        """Find the nearest points of each of `(q, d)` vectors, best first, `limit` at most."""

    def retrieve(self, image_ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """Return id -> whole payload, token bytes included; unknown ids are left out."""

    def vectors(self, image_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Return id -> `(d,)` vector of unit length; unknown ids are left out."""

    def delete(self, image_ids: Sequence[str]) -> None:
        """Remove points; unknown ids are ignored."""

    def count(self) -> int:
        """Return the number of points."""

    def close(self) -> None:
        """Flush and let go of files and connections; a second call does nothing."""
