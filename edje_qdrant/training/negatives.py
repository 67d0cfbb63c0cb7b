"""Hard negatives: wrong images and captions that the first stage ranks high."""

from __future__ import annotations

import torch
from torch import Tensor

from edje_qdrant.errors import ConfigError

__all__ = ["forbidden_pairs", "mine_negatives"]


def forbidden_pairs(
    image_ids: Tensor,
    caption_ids: Tensor,
    all_image_ids: Tensor | None = None,
    all_caption_ids: Tensor | None = None,
) -> Tensor:
    """Mark pairs that cannot be negatives: same image or same caption.

    Args:
        image_ids: `(b,)` int; equal images have equal ids.
        caption_ids: `(b,)` int; equal captions have equal ids.
        all_image_ids: `(B,)` of the global batch; `image_ids` by default.
        all_caption_ids: `(B,)` of the global batch; `caption_ids` by default.

    Returns:
        `(b, B)` bool; true on the pairs themselves too. Source: paper, 3.3.
    """
    others = image_ids if all_image_ids is None else all_image_ids
    other_captions = caption_ids if all_caption_ids is None else all_caption_ids
    return (image_ids[:, None] == others[None]) | (caption_ids[:, None] == other_captions[None])


def mine_negatives(similarity: Tensor, forbidden: Tensor, *, count: int = 1) -> Tensor:
    """Return each row's most similar allowed columns.

    Args:
        similarity: `(b, B)`, captions by images for wrong images, images by captions for wrong
            captions; first-stage scores, or noise to choose at random.
        forbidden: `(b, B)` bool, pairs that must not be chosen.
        count: Negatives per row.

    Returns:
        `(b, count)` int64; -1 where a row has no more allowed columns. Source: paper, 3.3.

    Raises:
        ConfigError: `count` is not between 1 and the batch size minus one.
    """
    columns = similarity.shape[1]
    if not 1 <= count < max(2, columns):
        raise ConfigError(
            f"num_negatives must be 1 to {columns - 1}, the batch size minus one, got {count}"
        )
    value, index = similarity.masked_fill(forbidden, -torch.inf).topk(count, dim=1)
    return index.masked_fill(value == -torch.inf, -1)
