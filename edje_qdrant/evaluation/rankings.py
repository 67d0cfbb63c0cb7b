"""Candidates of many queries with the scores of both stages, and rankings derived from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.evaluation.gallery import Gallery
from edje_qdrant.metrics import NOT_FOUND, first_ranks, hits_at, ndcg_at, reciprocal_ranks

__all__ = ["DEEPEST", "FIGURES", "Direction", "Rankings", "caption_rankings", "figures", "places"]

#: Text-to-image or image-to-text.
Direction = Literal["t2i", "i2t"]

#: Deepest rank used by any metric; the first stage always returns at least this many.
DEEPEST = 20

#: The metrics of every system, in the order in which they are shown.
FIGURES = ("R@1", "R@5", "R@10", "R@20", "MRR@20", "nDCG@10")


@dataclass(frozen=True, slots=True, eq=False)
class Rankings:
    """Hold the candidates of `q` queries, `depth` each, with the scores of both stages.

    Scores at one depth give the rankings for every smaller number of candidates: reranking the
    first K sorts those K by their joint scores, and the others keep the first stage's order. Equal
    joint scores also keep that order, as in a search; ties are not counted as errors.

    Attributes:
        direction: `t2i` or `i2t`.
        queries: `q` texts or image paths.
        answers: Texts or image paths, indexed by `candidates`.
        candidates: `(q, depth)` int64 rows of `answers`, best of the first stage first; -1 where
            there are fewer candidates.
        first: `(q, depth)` float32 cosines; -inf where there is no candidate.
        joint: `(q, depth)` float32 logits; -inf where there is no candidate.
        right: `(q, depth)` bool: whether a candidate is a right answer.
        rights: `q` tuples: the rows of all right answers, found or not.
        clusters: `(q,)` int64: the image each query belongs to; results for captions of one image
            are not independent.
        pool: Number of answers searched.
    """

    direction: Direction
    queries: Sequence[str]
    answers: Sequence[str]
    candidates: NDArray[np.int64]
    first: NDArray[np.float32]
    joint: NDArray[np.float32]
    right: NDArray[np.bool_]
    rights: Sequence[tuple[int, ...]]
    clusters: NDArray[np.int64]
    pool: int

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def depth(self) -> int:
        """Return the number of candidates for each query."""
        return int(self.candidates.shape[1])

    @property
    def num_right(self) -> NDArray[np.int64]:
        """Return `(q,)` int64: the number of right answers of each query, found or not."""
        return np.array([len(rows) for rows in self.rights], dtype=np.int64)

    def order(self, num_candidates: int) -> NDArray[np.int64]:
        """Return `(q, depth)` int64: the first-stage index at each final rank, from 0.

        Args:
            num_candidates: Candidates reranked; 0 for none.
        """
        reranked = np.argsort(-self.joint[:, :num_candidates], axis=1, kind="stable")
        behind = np.arange(reranked.shape[1], self.depth)
        tail = np.broadcast_to(behind, (len(self), len(behind)))
        return np.concatenate([reranked, tail], axis=1).astype(np.int64)

    def right_after(self, num_candidates: int) -> NDArray[np.bool_]:
        """Return `(q, depth)` bool: whether there is a right answer at each final rank."""
        return np.take_along_axis(self.right, self.order(num_candidates), axis=1)


def caption_rankings(
    gallery: Gallery,
    asked: NDArray[np.int64],
    answers: Sequence[str],
    candidates: NDArray[np.int64],
    first: NDArray[np.float32],
    joint: NDArray[np.float32],
    *,
    pool: int,
) -> Rankings:
    """Return the rankings of images for captions, each of which is right for its own image only.

    Args:
        gallery: Images and captions.
        asked: `(q,)` rows of the captions.
        answers: Image paths; those of the gallery come first.
        candidates: `(q, depth)`, as in `Rankings`.
        first: `(q, depth)` cosines.
        joint: `(q, depth)` logits.
        pool: Number of images searched.
    """
    owners = gallery.owner[asked]
    return Rankings(
        direction="t2i",
        queries=[gallery.captions[row] for row in asked],
        answers=answers,
        candidates=candidates,
        first=first,
        joint=joint,
        right=candidates == owners[:, None],
        rights=[(owner,) for owner in owners.tolist()],
        clusters=owners,
        pool=pool,
    )


def figures(right: NDArray[np.bool_], num_right: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return `(queries, metrics)`: the metrics of each query, in the order of `FIGURES`.

    Args:
        right: `(queries, ranks)` bool; at least `DEEPEST` ranks, or the whole pool.
        num_right: `(queries,)` number of right answers, found or not.
    """
    return np.stack(
        [
            *(hits_at(right, k) for k in (1, 5, 10, 20)),
            reciprocal_ranks(right, 20),
            ndcg_at(right, num_right, 10),
        ],
        axis=1,
    )


def places(right: NDArray[np.bool_]) -> list[int | None]:
    """Return the rank of each query's first right answer; None where there is none."""
    return [None if rank == NOT_FOUND else rank for rank in first_ranks(right).tolist()]
