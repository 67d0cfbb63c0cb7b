"""Retrieval metrics in numpy; docstrings state which of the usual definitions is used.

Most functions take a table `right`, `(queries, ranks)` bool: whether there is a right answer at
each rank of a query's ranking, best first. They return one value for each query: papers
report the mean over queries, and confidence intervals are computed from the single values.
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

#: The rank of an answer that was not found, larger than any other rank.
NOT_FOUND = np.iinfo(np.int64).max


def ranks_of(scores: ArrayLike, targets: ArrayLike) -> NDArray[np.int64]:
    """Return the rank of the one right answer of each query.

    Ties count against the right answer: it ranks behind all answers with the same score. A search
    breaks ties by its own order instead; if a ranking exists, use `first_ranks`.

    Args:
        scores: `(queries, answers)`, higher is better; `-inf` where an answer was not retrieved.
        targets: `(queries,)` index of the right answer.

    Returns:
        `(queries,)` int64 from 1; an answer that was not retrieved ranks behind all others.
    """
    table = np.asarray(scores, dtype=np.float64)
    own = table[np.arange(len(table)), np.asarray(targets)]
    ranks: NDArray[np.int64] = np.sum(table >= own[:, None], axis=1, dtype=np.int64)
    return ranks


def recall_at(ranks: Sequence[int | None] | NDArray[np.int64], k: int) -> float:
    """Return the share of queries whose right answer is among the first `k`.

    With one right answer for each query, as in text-to-image search, recall and success are the
    same. With several right answers (an image's five captions), papers on image-text retrieval
    count a hit if any is found, which is elsewhere called Success@k; recall in the strict sense is
    the share found.

    Args:
        ranks: Rank of the right answer from 1, or None if it was not found.
        k: Number of answers considered.

    Raises:
        ConfigError: `k` is less than 1 or there are no queries.
    """
    if k < 1 or len(ranks) == 0:
        raise ConfigError(f"recall needs k >= 1 and at least one query, got k={k}, n={len(ranks)}")
    return sum(r is not None and int(r) <= k for r in ranks) / len(ranks)


def first_ranks(right: ArrayLike) -> NDArray[np.int64]:
    """Return the rank of the first right answer of each query.

    Args:
        right: `(queries, ranks)` bool.

    Returns:
        `(queries,)` int64 from 1; `NOT_FOUND` if there is no right answer.
    """
    table = _table(right)
    if table.shape[1] == 0:
        return np.full(len(table), NOT_FOUND)
    return np.where(table.any(axis=1), table.argmax(axis=1) + 1, NOT_FOUND)


def hits_at(right: ArrayLike, k: int) -> NDArray[np.float64]:
    """Return for each query whether any right answer is among the first `k`; the mean is R@k.

    This is the definition of papers on image-text retrieval, elsewhere called Success@k. Recall as
    defined in information retrieval, the share of right answers found, is lower if a query has
    several: two of five captions found count as 1 here and as 0.4 there.

    Args:
        right: `(queries, ranks)` bool.
        k: Number of ranks considered.

    Returns:
        `(queries,)` float64, 0 or 1.

    Raises:
        ConfigError: `k` is less than 1.
    """
    found: NDArray[np.bool_] = np.any(_table(right)[:, : _check_k(k)], axis=1)
    return found.astype(np.float64)


def reciprocal_ranks(right: ArrayLike, k: int) -> NDArray[np.float64]:
    """Return the reciprocal rank of each query's first right answer; the mean is MRR@k.

    A right answer behind rank `k` counts as 0. MRR without a cut-off counts 1/rank for every rank
    and needs a ranking of the whole pool. The difference is at most 1/(k+1).

    Args:
        right: `(queries, ranks)` bool.
        k: Number of ranks considered.

    Returns:
        `(queries,)` float64 in [0, 1].

    Raises:
        ConfigError: `k` is less than 1.
    """
    ranks = first_ranks(_table(right)[:, : _check_k(k)])
    shares: NDArray[np.float64] = np.where(ranks == NOT_FOUND, 0.0, 1.0 / ranks)
    return shares


def ndcg_at(right: ArrayLike, num_right: ArrayLike, k: int) -> NDArray[np.float64]:
    """Return each query's nDCG@k: discounted gain of the answers found, relative to the ideal.

    Gains are binary, the discount is 1/log2(rank + 1), and the ideal ranking has
    min(k, number of right answers) right answers first, whether or not they were retrieved. Other
    definitions differ in the gain (2^grade - 1, which is the same for 0 and 1) and in the ideal:
    some compute it from the retrieved answers only, which gives higher values to a search that
    found few.

    Args:
        right: `(queries, ranks)` bool.
        num_right: `(queries,)` number of right answers in the pool, at least 1, found or not.
        k: Number of ranks considered.

    Returns:
        `(queries,)` float64 in [0, 1].

    Raises:
        ConfigError: `k` is less than 1, or a query has no right answer, or fewer than were found.
    """
    table, wanted = _table(right), np.asarray(num_right)
    if (wanted < 1).any() or (wanted < table.sum(axis=1)).any():
        raise ConfigError("nDCG needs the number of right answers of each query, found or not")
    discounts = 1.0 / np.log2(np.arange(2, _check_k(k) + 2))
    found = table[:, :k] @ discounts[: table.shape[1]]
    gains: NDArray[np.float64] = found / np.cumsum(discounts)[np.minimum(wanted, k) - 1]
    return gains


def kendall_tau(scores: ArrayLike, others: ArrayLike) -> NDArray[np.float64]:
    """Return the rank correlation of two scorings of each query's answers: Kendall's tau-a.

    Tau-a is the share of pairs of answers in the same order minus the share in opposite order. A
    pair with equal scores in either scoring counts as neither (tau-b would leave it out).

    Args:
        scores: `(queries, answers)`.
        others: `(queries, answers)`.

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
        raise ConfigError(f"right answers must have the shape (queries, ranks), not {table.shape}")
    return table


def _check_k(k: int) -> int:
    if k < 1:
        raise ConfigError(f"k is {k}; give 1 or more")
    return k
