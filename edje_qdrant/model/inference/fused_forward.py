"""The joint encoder's forward on a GPU: torch's matrix products with Triton kernels in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edje_qdrant.model.inference.packed_weights import PackedWeights

__all__ = ["PackedPairs", "first_states", "pack_pairs"]


@dataclass(frozen=True, slots=True)
class PackedPairs:
    """Pairs whose sequences lie end to end, without padding; all tensors on one GPU.

    Attributes:
        ids: All captions' word pieces end to end, int64.
        bounds: `(2, n + 1)` int32: where each caption starts in `ids`, and where each pair's
            sequence starts among the rows. Sequences may be empty.
        tokens: `(n, m, d)`, contiguous.
        rows: Rows of all sequences together, or more.
        longest: Upper bound of the sequences' lengths.
    """

    ids: Tensor
    bounds: Tensor
    tokens: Tensor
    rows: int
    longest: int


def pack_pairs(captions: Sequence[Tensor], tokens: Tensor) -> PackedPairs:
    """Lay out groups of captions, each `(n_g, t_g)`, and their `(n, m, d)` tokens."""
    m = tokens.shape[1]
    counts = [len(ids) for ids in captions]
    lengths = np.repeat([ids.shape[1] for ids in captions], counts)  # (n,)
    bounds = np.zeros((2, len(tokens) + 1), np.int32)
    np.cumsum(lengths, out=bounds[0, 1:])
    np.cumsum(lengths + m + 1, out=bounds[1, 1:])
    flat = [ids.reshape(-1) for ids in captions]
    return PackedPairs(
        ids=flat[0] if len(flat) == 1 else torch.cat(flat),
        bounds=torch.from_numpy(bounds).to(tokens.device, non_blocking=True),
        tokens=tokens.contiguous(),
        rows=int(bounds[1, -1]),
        longest=int(lengths.max()) + m + 1,
    )


def first_states(packed: PackedWeights, pairs: PackedPairs) -> Tensor:
    """Return the last layer's states of all pairs' first positions, `(n, d)`.

    `packed.kernels` is not None, and no sequence is longer than its `LONGEST`.
    """
    kernels, norm, last = packed.kernels, packed.embedding_norm, packed.last
    assert kernels is not None
    caption_starts, starts = pairs.bounds
    m, d = pairs.tokens.shape[1:]
    # The shortest sequence has [CLS], the tokens and [SEP].
    sizes = (starts, packed.heads, pairs.longest, m + 2)
    x: Tensor = kernels.embed(
        pairs.ids, caption_starts, pairs.tokens, starts, pairs.rows, pairs.longest,
        words=packed.words, caption_places=packed.caption_places,
        image_places=packed.image_places, sep=packed.sep,
        gain=norm.weight, bias=norm.bias, eps=norm.eps, dtype=packed.dtype,
    )  # fmt: skip
    for layer in packed.layers:
        qkv = layer.qkv(x)  # (rows, 3 d)
        mixed = kernels.attention(qkv[:, :d], qkv[:, d:], *sizes)  # (rows, d)
        x = layer.after(mixed, x)  # (rows, d)
    # Empty sequences may start behind the last row.
    first = x[starts[:-1].clamp(max=pairs.rows - 1)]  # (n, d)
    mixed = kernels.attention(last.query(first), last.key_value(x), *sizes, first_only=True)
    return last.after(mixed, first)
