"""Pictures and captions that are wrong, but look right to the first stage."""

from __future__ import annotations

import torch
from torch import Tensor

from edje_qdrant.errors import ConfigError

__all__ = ["forbidden_pairs", "mine_negatives"]


def forbidden_pairs(image_ids: Tensor, caption_ids: Tensor) -> Tensor:
    """Mark the pairs of a batch that are no negatives: same picture or same caption.

    Args:
        image_ids: `(b,)` int; equal pictures have equal ids.
        caption_ids: `(b,)` int; equal captions have equal ids.

    Returns:
        `(b, b)` bool, captions by pictures; the pairs themselves are marked too.
    """
    same_image = image_ids[:, None] == image_ids[None]
    return same_image | (caption_ids[:, None] == caption_ids[None])


def mine_negatives(
    similarity: Tensor, forbidden: Tensor, *, count: int = 1, hard: bool = True
) -> tuple[Tensor, Tensor]:
    """Choose negatives for each pair of a batch, by first-stage similarity or at random.

    Args:
        similarity: `(b, b)` captions by pictures, first-stage scores.
        forbidden: `(b, b)` bool, pairs that must not be chosen.
        count: Negatives of each kind a pair.
        hard: Take the most similar; else draw evenly.

    Returns:
        Two `(b, count)` int64: for each caption the wrong pictures, for each picture the wrong
        captions; -1 where a pair has no negative left. Source: paper, 3.3.

    Raises:
        ConfigError: `count` is not between 1 and the batch less one.
    """
    if not 1 <= count < max(2, len(similarity)):
        raise ConfigError(f"num_negatives must be 1 to {len(similarity) - 1}, got {count}")
    ranked = similarity if hard else torch.rand_like(similarity)
    ranked = ranked.masked_fill(forbidden, -torch.inf)

    def best(table: Tensor) -> Tensor:
        value, index = table.topk(count, dim=1)
        return index.masked_fill(value == -torch.inf, -1)

    return best(ranked), best(ranked.T)
