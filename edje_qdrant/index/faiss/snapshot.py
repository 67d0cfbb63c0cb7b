"""What a search looks at: a built index, vectors written since, and which of both are gone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.index.faiss.built import Built, Found, scan
from edje_qdrant.index.hnsw import Reach, reach_of, search_width

__all__ = ["Snapshot", "Tail"]

_Rows = NDArray[np.int64]

#: A walk that keeps more than this part of the vectors is no quicker than a scan.
WIDEST = 1 / 8


@dataclass(frozen=True, slots=True)
class Tail:
    """Hold vectors that are scanned, in arrays with room for more.

    Attributes:
        room: `(capacity, d)` float32; the first `count` are vectors.
        numbers: `(capacity,)` int64, ascending: their rows.
        count: How many there are.
    """

    room: NDArray[np.float32]
    numbers: _Rows
    count: int = 0

    @classmethod
    def empty(cls, dim: int) -> Tail:
        """Hold none yet."""
        return cls(np.empty((0, dim), np.float32), np.empty(0, np.int64))

    @property
    def rows(self) -> _Rows:
        """Return the `(n,)` rows."""
        return self.numbers[: self.count]

    @property
    def vectors(self) -> NDArray[np.float32]:
        """Return the `(n, d)` vectors."""
        return self.room[: self.count]

    def extended(self, rows: _Rows, vectors: NDArray[np.float32]) -> Tail:
        """Return these and more; only the latest may be extended, as all share their arrays."""
        count = self.count + len(rows)
        room, numbers = self.room, self.numbers
        if count > len(room):
            capacity = max(count, 2 * len(room), 64)
            room = np.empty((capacity, room.shape[1]), np.float32)
            numbers = np.empty(capacity, np.int64)
            room[: self.count], numbers[: self.count] = self.vectors, self.rows
        room[self.count : count], numbers[self.count : count] = vectors, rows
        return Tail(room, numbers, count)

    def scan(
        self, queries: NDArray[np.float32], wanted: int, mask: NDArray[np.bool_] | None
    ) -> Found:
        """Find the nearest of those places that the mask leaves."""
        return scan(queries, self.vectors, wanted, mask)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Hold vectors as they are at one moment; threads may search it while others write.

    Attributes:
        built: The built index; None if there is none.
        tail: What was written since, with higher rows.
        built_gone: `(n,)` true where a vector of the built index is gone; None if none is.
        tail_gone: The same for the tail.
    """

    built: Built | None
    tail: Tail
    built_gone: NDArray[np.bool_] | None = None
    tail_gone: NDArray[np.bool_] | None = None

    @property
    def count(self) -> int:
        """Return how many vectors there are."""
        built = 0 if self.built is None else len(self.built.rows)
        return built + self.tail.count - self.gone - _true(self.tail_gone)

    @property
    def last(self) -> int:
        """Return the highest row, 0 if there is none."""
        rows = self.tail.rows if self.built is None or self.tail.count else self.built.rows
        return int(rows[-1]) if len(rows) else 0

    @property
    def gone(self) -> int:
        """Return how many vectors of the built index are gone."""
        return _true(self.built_gone)

    @property
    def settled(self) -> bool:
        """Return whether all is in the built index, and nothing else is."""
        return self.tail.count == 0 and self.gone == 0

    def extended(self, rows: _Rows, vectors: NDArray[np.float32]) -> Snapshot:
        """Return this with more vectors."""
        gone = self.tail_gone
        if gone is not None:
            gone = np.concatenate([gone, np.zeros(len(rows), np.bool_)])
        return replace(self, tail=self.tail.extended(rows, vectors), tail_gone=gone)

    def without(self, rows: _Rows) -> Snapshot:
        """Return this without some vectors; unknown rows are ignored."""
        if not len(rows):
            return self
        built = None if self.built is None else _marked(self.built.rows, rows, self.built_gone)
        tail = _marked(self.tail.rows, rows, self.tail_gone)
        # Where nothing is gone, searches need not look whether something is.
        return replace(
            self,
            built_gone=built if _true(built) else None,
            tail_gone=tail if _true(tail) else None,
        )

    def nearest(
        self,
        queries: NDArray[np.float32],
        wanted: int,
        among: _Rows | None,
        excluded: _Rows,
    ) -> list[list[tuple[int, float]]]:
        """Find the `wanted` vectors nearest to each of `(q, d)` queries.

        Args:
            queries: Of unit length.
            wanted: How many, at most; there may be twice as many, in no order.
            among: Rows to look among, None for all.
            excluded: Rows to leave out.

        Returns:
            For each query, rows and cosines.
        """
        found: list[list[tuple[int, float]]] = [[] for _ in queries]
        parts: list[tuple[Built | Tail, NDArray[np.bool_] | None]] = [(self.tail, self.tail_gone)]
        if self.built is not None:
            parts.append((self.built, self.built_gone))
        for part, gone in parts:
            rows = part.rows
            mask = _mask(rows, gone, among, excluded)
            left = len(rows) if mask is None else _true(mask)
            if not left or not len(queries):
                continue
            scores, places = _search(part, queries, min(wanted, left), mask, left)
            for query, (cosines, at) in enumerate(zip(scores, places, strict=True)):
                there = at >= 0
                found[query] += zip(rows[at[there]].tolist(), cosines[there].tolist(), strict=True)
        return found


def _search(
    part: Built | Tail,
    queries: NDArray[np.float32],
    wanted: int,
    mask: NDArray[np.bool_] | None,
    left: int,
) -> Found:
    total = len(part.rows)
    few = reach_of(left, total) is Reach.FEW or search_width(wanted) > WIDEST * total
    if isinstance(part, Tail) or few:
        return part.scan(queries, wanted, mask)
    found = part.walk(queries, wanted, mask)
    if (found[1] < 0).any():  # it ended before it had found enough
        return part.scan(queries, wanted, mask)
    return found


def _mask(
    rows: _Rows, gone: NDArray[np.bool_] | None, among: _Rows | None, excluded: _Rows
) -> NDArray[np.bool_] | None:
    """Return which places to look at; None for all."""
    if gone is None and among is None and not len(excluded):
        return None
    mask = np.ones(len(rows), np.bool_) if among is None else _marked(rows, among, None)
    if gone is not None:
        mask &= ~gone
    if len(excluded):
        mask &= ~_marked(rows, excluded, None)
    return mask


def _marked(rows: _Rows, chosen: _Rows, before: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Return `(n,)` true where a row is chosen, or was before; `rows` ascend."""
    mask = np.zeros(len(rows), np.bool_) if before is None else before.copy()
    if len(rows):
        places = np.minimum(np.searchsorted(rows, chosen), len(rows) - 1)
        mask[places[rows[places] == chosen]] = True
    return mask


def _true(mask: NDArray[np.bool_] | None) -> int:
    return 0 if mask is None else int(np.count_nonzero(mask))
