"""Validation by text-to-image search: exact first stage, then reranking."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edje_qdrant.metrics import ranks_of, recall_at
from edje_qdrant.model import EDJEModel

__all__ = ["search_validation"]

_QUERIES = 256


def search_validation(
    model: EDJEModel,
    texts: Sequence[str],
    right: NDArray[np.int64],
    embeddings: NDArray[np.float32],
    vision_tokens: Callable[[], Iterable[Tensor]],
    *,
    num_candidates: int,
) -> Callable[[], dict[str, float]]:
    """Return a function that measures a model in training on held-out images.

    Args:
        model: The model in training; its frozen first stage is computed once.
        texts: `q` captions.
        right: `(q,)` index of each caption's image.
        embeddings: `(n, d)` of the images, unit length.
        vision_tokens: Returns the images' vision tokens in order, `(b, patches, d_v)` float32 each;
            called in each validation.
        num_candidates: Images reranked per caption; all if there are fewer.

    Returns:
        A function without arguments -> `first R@1`, `first R@10` of the first stage, and `R@1`,
        `R@5`, `R@10` after reranking.
    """
    first = model.encode_texts(texts) @ embeddings.T  # (q, n)
    depth = min(num_candidates, len(embeddings))
    nearest = np.argsort(-first, axis=1, kind="stable")[:, :depth]  # (q, depth)
    before = ranks_of(first, right)
    figures = {f"first R@{k}": recall_at(before, k) for k in (1, 10)}

    def validate() -> dict[str, float]:
        tokens = torch.cat([model.adapter(part) for part in vision_tokens()]).cpu()
        scores = np.full(first.shape, -np.inf)
        for start in range(0, len(texts), _QUERIES):
            chosen = nearest[start : start + _QUERIES]
            pairs = [t for t in texts[start : start + _QUERIES] for _ in range(depth)]
            found = model.score_pairs(pairs, tokens[torch.from_numpy(chosen.ravel())])
            rows = scores[start : start + _QUERIES]
            np.put_along_axis(rows, chosen, found.reshape(-1, depth), axis=1)
        after = ranks_of(scores, right)
        return figures | {f"R@{k}": recall_at(after, k) for k in (1, 5, 10)}

    return validate
