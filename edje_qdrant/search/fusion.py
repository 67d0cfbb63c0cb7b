"""Combine the scores of both stages."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["DEFAULT_WEIGHTS", "blend", "reciprocal_ranks"]

#: Weights of the first stage and of the joint encoder: among the best of those tried on scenes that
#: are not the ones measured in docs/results.md. For "words": of the BM25 score and of the logit,
#: both of which are logarithms of odds; chosen by benchmarks/hybrid.py.
DEFAULT_WEIGHTS = {"words": (0.5, 1.0), "rrf": (1.0, 3.0), "blend": (0.3, 0.7)}

# From the formula's source; it limits the weight of the first places.
_SMOOTHING = 60


def reciprocal_ranks(
    cosines: NDArray[np.float32], logits: NDArray[np.float32], weights: tuple[float, float]
) -> NDArray[np.float64]:
    """Return `(n,)`: the weighted sum of 1 / (60 + rank) over both stages.

    Args:
        cosines: `(n,)` scores of the first stage.
        logits: `(n,)` scores of the joint encoder.
        weights: Weights of the first stage and of the joint encoder.

    Source: Cormack, Clarke, Buettcher, Reciprocal Rank Fusion, SIGIR 2009.
    """
    first, second = weights
    fused: NDArray[np.float64] = first / (_SMOOTHING + _ranks(cosines)) + second / (
        _SMOOTHING + _ranks(logits)
    )
    return fused


def blend(
    cosines: NDArray[np.float32], logits: NDArray[np.float32], weights: tuple[float, float]
) -> NDArray[np.float64]:
    """Return `(n,)`: the weighted mean of both stages' scores.

    Cosines and logits have no common scale, so those of each stage are first standardised to mean 0
    and standard deviation 1 over the `n` candidates.

    Args:
        cosines: `(n,)` scores of the first stage.
        logits: `(n,)` scores of the joint encoder.
        weights: Weights of the first stage and of the joint encoder.
    """
    first, second = weights
    mean: NDArray[np.float64] = (first * _standard(cosines) + second * _standard(logits)) / (
        first + second
    )
    return mean


def _ranks(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the `(n,)` rank of each score, from 1; equal scores rank in order."""
    ranks = np.empty(len(scores), np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return ranks


def _standard(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    exact = scores.astype(np.float64)
    spread = exact.std() if len(exact) else 0.0
    return (exact - exact.mean()) / spread if spread > 0 else np.zeros_like(exact)
