"""Vectors in memory, compared one by one through faiss."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import MissingExtraError

__all__ = ["Rows", "Vectors", "load_faiss"]

Rows = NDArray[np.int64]

_LEAST_ROOM = 64


def load_faiss() -> ModuleType:
    """Import faiss.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("faiss-cpu", "faiss") from error
    module: ModuleType = faiss
    return module


@dataclass(frozen=True, slots=True)
class Vectors:
    """Unit vectors as they are at one moment; threads may search them while others write.

    Attributes:
        room: `(capacity, d)` float32; the first `count` are vectors.
        rows: `(capacity,)` int64, ascending: the vectors' row numbers.
        count: Vectors, deleted ones included.
        deleted: `(count,)` true where a vector is deleted; None where none is.
    """

    room: NDArray[np.float32]
    rows: Rows
    count: int = 0
    deleted: NDArray[np.bool_] | None = None

    @classmethod
    def empty(cls, dim: int, capacity: int = 0) -> Vectors:
        """Return no vectors, with room for some."""
        return cls(np.empty((capacity, dim), np.float32), np.empty(capacity, np.int64))

    @property
    def remaining(self) -> int:
        """Return the number of vectors that are not deleted."""
        return self.count - (0 if self.deleted is None else int(np.count_nonzero(self.deleted)))

    def extended(self, rows: Rows, vectors: NDArray[np.float32]) -> Vectors:
        """Return these and more vectors, whose rows are higher; shares the room with this one.

        Only the latest may be extended.
        """
        base = self
        if self.count + len(rows) > len(self.room):
            capacity = max(self.remaining + len(rows), 2 * self.remaining, _LEAST_ROOM)
            base = self.compacted(capacity)
        count = base.count + len(rows)
        base.room[base.count : count], base.rows[base.count : count] = vectors, rows
        deleted = base.deleted
        if deleted is not None:
            deleted = np.concatenate([deleted, np.zeros(len(rows), np.bool_)])
        return Vectors(base.room, base.rows, count, deleted)

    def compacted(self, capacity: int = 0) -> Vectors:
        """Return a copy without deleted vectors, with room for `capacity` of them at least."""
        kept = np.flatnonzero(self._remaining_of(None))
        copy = Vectors.empty(self.room.shape[1], max(capacity, len(kept)))
        np.take(self.room, kept, axis=0, out=copy.room[: len(kept)])
        copy.rows[: len(kept)] = self.rows[kept]
        return Vectors(copy.room, copy.rows, len(kept))

    def without(self, rows: Rows) -> Vectors:
        """Return these with some rows deleted; unknown rows are ignored."""
        if not len(rows):
            return self
        return Vectors(self.room, self.rows, self.count, ~self._remaining_of(None) | self._at(rows))

    def nearest(
        self, queries: NDArray[np.float32], wanted: int, among: Rows | None
    ) -> list[list[tuple[int, float]]]:
        """Find the `wanted` nearest of each of `(q, d)` unit vectors.

        Args:
            queries: `(q, d)` float32.
            wanted: Vectors to find for each, at most.
            among: Rows to search; None for all.

        Returns:
            For each query, rows and cosines.
        """
        mask = None
        if among is not None or self.deleted is not None:
            mask = self._remaining_of(among)
        wanted = min(wanted, self.count if mask is None else int(np.count_nonzero(mask)))
        if not wanted or not len(queries):
            return [[] for _ in queries]
        faiss = load_faiss()
        scores = np.empty((len(queries), wanted), np.float32)
        places = np.empty((len(queries), wanted), np.int64)
        faiss.knn_inner_product(
            faiss.swig_ptr(queries),
            faiss.swig_ptr(self.room),
            queries.shape[1],
            len(queries),
            self.count,
            wanted,
            faiss.swig_ptr(scores),
            faiss.swig_ptr(places),
            None if mask is None else faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little")),
        )
        return [
            [*zip(self.rows[at].tolist(), cosines.tolist(), strict=True)]
            for at, cosines in zip(places, scores, strict=True)
        ]

    def best_score(
        self,
        positive: NDArray[np.float32],
        negative: NDArray[np.float32],
        wanted: int,
        among: Rows | None,
    ) -> list[tuple[int, float]]:
        """Find the `wanted` best by Qdrant's `best_score` for `(p, d)` and `(n, d)` examples."""
        places = np.flatnonzero(self._remaining_of(among))
        nearest, avoided = (self._nearest_example(each)[places] for each in (positive, negative))
        with np.errstate(invalid="ignore"):  # minus infinity where there is no example
            scores = np.where(nearest > avoided, _sigmoid(nearest), -_sigmoid(avoided))
        best = np.argsort(-scores, kind="stable")[:wanted]
        return [*zip(self.rows[places[best]].tolist(), scores[best].tolist(), strict=True)]

    def _nearest_example(self, examples: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return each vector's cosine with the nearest example."""
        nearest = np.full(self.count, -np.inf)
        for example in examples:
            np.maximum(nearest, self.room[: self.count] @ example, out=nearest)
        return nearest

    def _remaining_of(self, among: Rows | None) -> NDArray[np.bool_]:
        """Return `(count,)` true where a vector is among some rows and not deleted."""
        mask = np.ones(self.count, np.bool_) if among is None else self._at(among)
        return mask if self.deleted is None else mask & ~self.deleted

    def _at(self, rows: Rows) -> NDArray[np.bool_]:
        """Return `(count,)` true at the places of some rows."""
        mask = np.zeros(self.count, np.bool_)
        if self.count:
            mine = self.rows[: self.count]
            places = np.minimum(np.searchsorted(mine, rows), self.count - 1)
            mask[places[mine[places] == rows]] = True
        return mask


def _sigmoid(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map cosines to the range from 0 to 1, in their order."""
    squeezed: NDArray[np.float64] = (cosines / (1 + np.abs(cosines)) + 1) / 2
    return squeezed
