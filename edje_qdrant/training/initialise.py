"""Initialisation of the compressed adapter's attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edje_qdrant.errors import ConfigError
from edje_qdrant.model.adapter import CompressedAdapter

__all__ = ["attention_entropy", "look_at_regions"]


def look_at_regions(
    adapter: CompressedAdapter, vision_tokens: Tensor, *, entropy: float = 1.5
) -> None:
    """Initialise an untrained adapter so that each query attends to its own region, in place.

    With random queries attention is uniform over the image for a long time, and all tokens are the
    same average. Here each query starts as the mean vision token of one region of the grid, minus
    the mean of all regions. All heads compare queries and keys along the same directions, those in
    which the positions of the grid differ most, so that all heads attend to the same place. Values
    pass unchanged, so that a token starts as the average of its region's patches. The queries are
    scaled until the attention has the given entropy.

    Args:
        adapter: Its query, key, value and attention are overwritten.
        vision_tokens: `(b, n, d_v)` of a few hundred images; `n` is a square number.
        entropy: Of a query's attention over the patches, in nats; `log n` is uniform.

    Raises:
        ConfigError: The patches do not form a square.
    """
    patches = vision_tokens.shape[1]
    grid = math.isqrt(patches)
    if grid * grid != patches:
        raise ConfigError(f"{patches} vision tokens do not form a square grid")
    count = adapter.query.shape[1]
    rows = next(r for r in range(math.isqrt(count), 0, -1) if count % r == 0)
    columns = count // rows
    place = torch.arange(patches)
    row, column = place // grid, place % grid
    middle = vision_tokens.float().mean(dim=0)  # (n, d_v), the average at each position
    regions = [
        middle[(row * rows // grid == r) & (column * columns // grid == c)].mean(dim=0)
        if rows <= grid and columns <= grid
        else middle[(r * grid // rows) * grid + c * grid // columns]
        for r in range(rows)
        for c in range(columns)
    ]
    centred = middle - middle.mean(dim=0)  # (n, d_v)
    queries = torch.stack(regions) - middle.mean(dim=0)  # (m, d_v)
    with torch.no_grad():
        width, heads = adapter.query.shape[2], adapter.attention.num_heads
        identity = torch.eye(width)
        for linear in (adapter.key, adapter.value, adapter.attention.out_proj):
            linear.weight.copy_(identity)
            linear.bias.zero_()
        # (d_v / heads, d_v)
        directions = torch.linalg.svd(centred, full_matrices=True).Vh[: width // heads]
        compared = directions.repeat(heads, 1)  # (d_v, d_v): the same for every head
        adapter.attention.in_proj_weight.copy_(torch.cat([compared, compared, identity]))
        adapter.attention.in_proj_bias.zero_()
        low, high = 0.0, 100.0
        for _ in range(20):  # bisection: the entropy falls as the scale grows
            scale = (low + high) / 2
            adapter.query.copy_(queries[None] * scale)
            if attention_entropy(adapter, vision_tokens) > entropy:
                low = scale
            else:
                high = scale


def attention_entropy(adapter: CompressedAdapter, vision_tokens: Tensor) -> float:
    """Return the mean entropy of the queries' attention over `(b, n, d_v)` tokens, in nats."""
    with torch.no_grad():
        weights = adapter.attention_weights(vision_tokens.float())
    return float(-(weights * weights.clamp(min=1e-12).log()).sum(-1).mean())
