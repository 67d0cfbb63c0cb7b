"""Retrieval metrics on ranks, in plain numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edje_qdrant.errors import ConfigError

__all__ = ["ranks_of", "recall_at"]


def ranks_of(scores: ArrayLike, targets: ArrayLike) -> NDArray[np.int64]:
    """Find the place of each query's one right answer.

    Ties count against the right answer: an answer no better than others is not a find.

    Args:
        scores: `(queries, answers)`, higher is better; `-inf` where an answer was not retrieved.
        targets: `(queries,)` index of the right answer.

    Returns:
        `(queries,)` int64 from 1; an answer that was not retrieved stands behind all others.
    """
    table = np.asarray(scores, dtype=np.float64)
    own = table[np.arange(len(table)), np.asarray(targets)]
    ranks: NDArray[np.int64] = np.sum(table >= own[:, None], axis=1, dtype=np.int64)
    return ranks


def recall_at(ranks: Sequence[int | None] | NDArray[np.int64], k: int) -> float:
    """Return the share of queries whose right answer is among the first `k`.

    With one right answer a query, as in text-to-image search, recall and success are the same.
    With several (a picture's five captions), papers of this field call it a hit if any is found,
    which others call Success@k; recall proper would count the share found.

    Args:
        ranks: Place of the right answer from 1, or None where it was not found.
        k: How many answers are looked at.

    Raises:
        ConfigError: `k` is less than 1 or there are no queries.
    """
    if k < 1 or len(ranks) == 0:
        raise ConfigError(f"recall needs k >= 1 and at least one query, got k={k}, n={len(ranks)}")
    return sum(r is not None and int(r) <= k for r in ranks) / len(ranks)
