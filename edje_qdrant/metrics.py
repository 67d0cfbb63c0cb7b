"""Retrieval metrics in plain numpy; each docstring says which of the usual readings is meant.

Most work on a table `right`, `(queries, places)` bool: whether the answer at each place of a
query's ranking, best first, is a right one. They give one figure a query; the mean over queries is
what papers report, and the single figures are what intervals are drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edje_qdrant.errors import ConfigError

__all__ = [
    "NOT_FOUND",
    "first_ranks",
    "hits_at",
    "kendall_tau",
    "ndcg_at",
    "ranks_of",
    "recall_at",
    "reciprocal_ranks",
]

#: The rank of what was not found: behind every place there is.
NOT_FOUND = np.iinfo(np.int64).max


def ranks_of(scores: ArrayLike, targets: ArrayLike) -> NDArray[np.int64]:
    """Find the place of each query's one right answer.

    Ties count against the right answer: an answer no better than others is not a find. A search
    breaks ties by an order of its own instead; where a ranking exists, use `first_ranks`.

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
    With several (an image's five captions), papers of this field call it a hit if any is found,
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


def first_ranks(right: ArrayLike) -> NDArray[np.int64]:
    """Find the place of each query's first right answer.

    Args:
        right: `(queries, places)` bool.

    Returns:
        `(queries,)` int64 from 1; `NOT_FOUND` where no place holds a right answer.
    """
    table = _table(right)
    if table.shape[1] == 0:
        return np.full(len(table), NOT_FOUND)
    return np.where(table.any(axis=1), table.argmax(axis=1) + 1, NOT_FOUND)


def hits_at(right: ArrayLike, k: int) -> NDArray[np.float64]:
    """Say for each query whether any right answer is among the first `k`: its mean is R@k.

    This is the reading of papers on image and text retrieval, called Success@k elsewhere. Recall
    as information retrieval has it, the share of the right answers that were found, is less where
    a query has several: two captions of five found in ten count as 1 here and as 0.4 there.

    Args:
        right: `(queries, places)` bool.
        k: How many places are looked at.

    Returns:
        `(queries,)` float64, 0 or 1.

    Raises:
        ConfigError: `k` is less than 1.
    """
    found: NDArray[np.bool_] = np.any(_table(right)[:, : _cut(k)], axis=1)
    return found.astype(np.float64)


def reciprocal_ranks(right: ArrayLike, k: int) -> NDArray[np.float64]:
    """Return one over the place of each query's first right answer: its mean is MRR@k.

    A right answer behind place `k` counts as 0. The other reading, MRR without a cut, gives it
    1/place, however far back; it needs the whole pool ranked. The difference is at most 1/(k+1).

    Args:
        right: `(queries, places)` bool.
        k: How many places are looked at.

    Returns:
        `(queries,)` float64 in [0, 1].

    Raises:
        ConfigError: `k` is less than 1.
    """
    ranks = first_ranks(_table(right)[:, : _cut(k)])
    shares: NDArray[np.float64] = np.where(ranks == NOT_FOUND, 0.0, 1.0 / ranks)
    return shares


def ndcg_at(right: ArrayLike, num_right: ArrayLike, k: int) -> NDArray[np.float64]:
    """Return each query's nDCG@k: found right answers, discounted by place, against the best order.

    Gains are binary, the discount is 1/log2(place + 1), and the ideal puts
    min(k, number of right answers) first, whether or not they were retrieved. Other readings differ
    in the gain (2^grade - 1, the same for 0 and 1) and in the ideal: some take it over the
    retrieved answers alone, which flatters a search that found few.

    Args:
        right: `(queries, places)` bool.
        num_right: `(queries,)` right answers in the pool, 1 or more, found or not.
        k: How many places are looked at.

    Returns:
        `(queries,)` float64 in [0, 1].

    Raises:
        ConfigError: `k` is less than 1, or a query has no right answer, or fewer than were found.
    """
    table, wanted = _table(right), np.asarray(num_right)
    if (wanted < 1).any() or (wanted < table.sum(axis=1)).any():
        raise ConfigError("nDCG needs the number of right answers of each query, found or not")
    discounts = 1.0 / np.log2(np.arange(2, _cut(k) + 2))
    found = table[:, :k] @ discounts[: table.shape[1]]
    gains: NDArray[np.float64] = found / np.cumsum(discounts)[np.minimum(wanted, k) - 1]
    return gains


def kendall_tau(scores: ArrayLike, others: ArrayLike) -> NDArray[np.float64]:
    """Say how far two scorings put each query's answers into the same order: Kendall's tau-a.

    The share of pairs of answers that both order alike, less the share that they order differently.
    A pair that either of them gives equal scores counts as neither (tau-b would leave it out).

    Args:
        scores: `(queries, answers)`.
        others: Likewise.

    Returns:
        `(queries,)` float64 in [-1, 1].

    Raises:
        ConfigError: The shapes differ, or there are fewer than two answers.
    """
    one, other = (np.asarray(table, np.float64) for table in (scores, others))
    if one.shape != other.shape or one.ndim != 2 or one.shape[1] < 2:
        raise ConfigError(
            f"tau compares two tables (queries, answers) with two answers or more, not {one.shape} "
            f"and {other.shape}"
        )
    first, second = np.triu_indices(one.shape[1], 1)
    agreed = [
        float(np.mean(np.sign(a[first] - a[second]) * np.sign(b[first] - b[second])))
        for a, b in zip(one, other, strict=True)
    ]
    return np.array(agreed, np.float64)


def _table(right: ArrayLike) -> NDArray[np.bool_]:
    table = np.asarray(right, dtype=np.bool_)
    if table.ndim != 2:
        raise ConfigError(f"right answers take a table (queries, places), not shape {table.shape}")
    return table


def _cut(k: int) -> int:
    if k < 1:
        raise ConfigError(f"k is {k}; look at 1 place or more")
    return k
