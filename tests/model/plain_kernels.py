"""The kernels of `cuda_kernels` in plain torch, for any device."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

LONGEST = 256


def embed(
    ids: Tensor, caption_starts: Tensor, tokens: Tensor, starts: Tensor, rows: int, longest: int,
    *, words: Tensor, caption_places: Tensor, image_places: Tensor, sep: Tensor, gain: Tensor,
    bias: Tensor, eps: float, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    m, d = tokens.shape[1:]
    # NaN: no kernel may use what was not written.
    out = torch.full((rows, d), torch.nan, dtype=torch.float32, device=tokens.device)
    for pair, first in enumerate(starts[:-1].tolist()):
        caption = ids[int(caption_starts[pair]) : int(caption_starts[pair + 1])]
        t = len(caption)
        if not t:
            continue
        x = torch.cat([words[caption], tokens[pair].to(words.dtype), sep[None]]).float()
        x[:t] += caption_places[:t]
        x[t:] += image_places[t : t + m + 1]
        assert len(x) == int(starts[pair + 1]) - first <= longest
        out[first : first + len(x)] = functional.layer_norm(
            x, (d,), gain.float(), bias.float(), eps
        )
    return out.to(dtype)


def add_norm(x: Tensor, y: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    z = x.float() + y.float()
    return functional.layer_norm(z, z.shape[1:], gain.float(), bias.float(), eps).to(x.dtype)


def attention(
    queries: Tensor, keys: Tensor, starts: Tensor, heads: int, longest: int, shortest: int,
    *, first_only: bool = False,
) -> Tensor:  # fmt: skip
    d = queries.shape[1]
    out = torch.full_like(queries, torch.nan)
    bounds = starts.tolist()
    for pair, (first, end) in enumerate(pairwise(bounds)):
        if end == first:
            continue
        assert shortest <= end - first <= longest
        mine = slice(pair, pair + 1) if first_only else slice(first, end)
        q, k, v = (
            part.float().view(len(part), heads, -1).transpose(0, 1)
            for part in (queries[mine], keys[first:end, :d], keys[first:end, d:])
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, scale=1.0)
        out[mine] = mixed.transpose(0, 1).reshape(-1, d).to(out.dtype)
    return out
