"""Exact nearest neighbours in memory, in the order in which collections return them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.index.backend import Found
from edje_qdrant.index.ranking import SLACK, rank

__all__ = ["nearest"]

# Maximum number of cosines held at a time.
_CELLS = 1 << 25


def nearest(
    queries: NDArray[np.float32],
    answers: NDArray[np.float32],
    depth: int,
    *,
    names: Sequence[str] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the answers nearest to each query by cosine.

    Cosines that are equal up to rounding are ordered by name, as in a collection.

    Args:
        queries: `(q, d)` float32, unit length.
        answers: `(n, d)` float32, unit length.
        depth: Answers for each query, at most `n`.
        names: Names that equal answers are ordered by; by default their rows.

    Returns:
        Rows of `answers` `(q, depth)` int64, best first, and their cosines `(q, depth)` float32.
    """
    count = len(answers)
    depth = min(depth, count)
    width = len(str(count))
    rows = np.empty((len(queries), depth), np.int64)
    cosines = np.empty((len(queries), depth), np.float32)
    step = max(1, _CELLS // max(1, count))
    wanted = min(depth + SLACK, count)
    for start in range(0, len(queries), step):
        table = queries[start : start + step] @ answers.T
        best = np.argpartition(-table, wanted - 1, axis=1)[:, :wanted] if wanted else None
        for n, scores in enumerate(table):
            if best is None:
                continue
            found = (
                Found(
                    f"{row:0{width}d}" if names is None else names[row],
                    float(scores[row]),
                    {"row": row},
                )
                for row in best[n].tolist()
            )
            for place, candidate in enumerate(rank(found, depth)):
                rows[start + n, place] = candidate.payload["row"]
                cosines[start + n, place] = candidate.score
    return rows, cosines
