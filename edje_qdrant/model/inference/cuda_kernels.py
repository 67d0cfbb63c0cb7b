"""Triton kernels for the steps of the joint encoder that move data rather than multiply matrices.

torch runs these steps as several kernels each, and every one of them reads and writes all
activations. On a GPU that takes as long as the matrix products, which stay with torch. In all
kernels the sequences of the pairs lie end to end, without padding: `starts` `(n + 1,)` int32 holds
the first row of each sequence and, last, the number of rows. A sequence may be empty.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["LONGEST", "add_norm", "attention", "embed"]

#: Longest sequence that `attention` computes.
LONGEST = 256

_LOG2E = tl.constexpr(1.4426950408889634)

# Rows of one block of `embed` and `add_norm`; other sizes were not faster on an H200.
_EMBED_ROWS, _NORM_ROWS = 8, 4

# Longest sequence -> sizes of the two blocks of keys and of a block of queries. All scores of a
# query are in registers at once, so that its softmax is computed in one pass.
_BLOCKS = (
    (32, (16, 16, 32)),
    (64, (32, 32, 64)),
    (96, (64, 32, 128)),
    (128, (64, 64, 128)),
    (LONGEST, (128, 128, 64)),
)


@triton.jit
def _normalised(x, known, d, eps, gain, bias, column):
    """Return the layer normalisation of the rows of `x`, whose columns from `d` on are 0."""
    mean = tl.sum(x, axis=1) / d
    x = tl.where(known[None, :], x - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / d + eps)
    gains = tl.load(gain + column, mask=known, other=0.0).to(tl.float32)
    biases = tl.load(bias + column, mask=known, other=0.0).to(tl.float32)
    return x * scale[:, None] * gains[None, :] + biases[None, :]


@triton.jit(do_not_specialize=["eps"])
def _embed_kernel(
    ids, caption_starts, starts, words, caption_places, image_places, tokens, sep,
    gain, bias, out, m, d, eps,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0)
    first = tl.load(starts + pair)
    length = tl.load(starts + pair + 1) - first
    place = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    if tl.program_id(1) * ROWS >= length:
        return
    column = tl.arange(0, WIDTH)
    known = column < d
    caption = tl.load(caption_starts + pair)
    t = tl.load(caption_starts + pair + 1) - caption
    is_word, is_sep = place < t, place == t + m
    is_token = (place >= t) & (place < t + m)
    row = place[:, None].to(tl.int64) * d + column[None, :]

    mask = is_word[:, None] & known[None, :]
    word = tl.load(ids + caption + place, mask=is_word, other=0)
    x = tl.load(words + word[:, None] * d + column[None, :], mask=mask, other=0.0).to(tl.float32)
    x += tl.load(caption_places + row, mask=mask, other=0.0).to(tl.float32)

    mask = is_token[:, None] & known[None, :]
    token = pair.to(tl.int64) * m + (place - t)
    at = token[:, None] * d + column[None, :]
    x += tl.load(tokens + at, mask=mask, other=0.0).to(tl.float32)
    mask = is_sep[:, None] & known[None, :]
    x += tl.load(sep + 0 * place[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
    mask = (is_token | is_sep)[:, None] & known[None, :]
    x += tl.load(image_places + row, mask=mask, other=0.0).to(tl.float32)

    x = _normalised(x, known, d, eps, gain, bias, column)
    to = (first.to(tl.int64) + place)[:, None] * d + column[None, :]
    mask = (place < length)[:, None] & known[None, :]
    tl.store(out + to, x.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "eps"])
def _add_norm_kernel(x, y, gain, bias, out, rows, d, eps, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    known = column < d
    mask = (row < rows)[:, None] & known[None, :]
    at = row.to(tl.int64)[:, None] * d + column[None, :]
    z = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    z += tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
    z = _normalised(z, known, d, eps, gain, bias, column)
    tl.store(out + at, z.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _attention_kernel(
    queries, query_width, keys, key_width, starts, out, heads, d,
    HEAD: tl.constexpr, ROWS: tl.constexpr, KEYS0: tl.constexpr, KEYS1: tl.constexpr,
    FULL: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """Attention of one head of one pair, for one block of queries.

    `FULL`: every sequence that is not empty has at least `KEYS0` rows. `FIRST`: there is one query
    a pair, that of its first row.
    """
    pair = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    first = tl.load(starts + pair).to(tl.int64)
    length = (tl.load(starts + pair + 1) - first).to(tl.int32)
    if tl.program_id(1) * ROWS >= length:
        return
    column = tl.arange(0, HEAD)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    if FIRST:
        wanted = row < 1
        query = pair + row
    else:
        wanted = row < length
        query = first + row
    q = tl.load(
        queries + query[:, None] * query_width + head * HEAD + column[None, :],
        mask=wanted[:, None],
        other=0.0,
    )  # (ROWS, HEAD), already scaled

    i0, i1 = tl.arange(0, KEYS0), KEYS0 + tl.arange(0, KEYS1)
    base = keys + first * key_width + head * HEAD
    at0 = base + i0[:, None] * key_width + column[None, :]
    at1 = base + i1[:, None] * key_width + column[None, :]
    known0, known1 = i0 < length, i1 < length
    if FULL:
        k0 = tl.load(at0)  # (KEYS0, HEAD)
        v0 = tl.load(at0 + d)
    else:
        k0 = tl.load(at0, mask=known0[:, None], other=0.0)
        v0 = tl.load(at0 + d, mask=known0[:, None], other=0.0)
    k1 = tl.load(at1, mask=known1[:, None], other=0.0)  # (KEYS1, HEAD)
    v1 = tl.load(at1 + d, mask=known1[:, None], other=0.0)

    s0 = tl.dot(q, tl.trans(k0))  # (ROWS, KEYS0)
    s1 = tl.dot(q, tl.trans(k1))
    if not FULL:
        s0 = tl.where(known0[None, :], s0, float("-inf"))
    s1 = tl.where(known1[None, :], s1, float("-inf"))
    highest = tl.maximum(tl.max(s0, axis=1), tl.max(s1, axis=1))[:, None] * _LOG2E
    w0 = tl.exp2(s0 * _LOG2E - highest)
    w1 = tl.exp2(s1 * _LOG2E - highest)
    mixed = tl.dot(w0.to(v0.dtype), v0)  # (ROWS, HEAD)
    mixed = tl.dot(w1.to(v1.dtype), v1, mixed)
    mixed = mixed / (tl.sum(w0, axis=1) + tl.sum(w1, axis=1))[:, None]
    to = out + query[:, None] * d + head * HEAD + column[None, :]
    tl.store(to, mixed.to(out.dtype.element_ty), mask=wanted[:, None])


def embed(
    ids: Tensor,
    caption_starts: Tensor,
    tokens: Tensor,
    starts: Tensor,
    rows: int,
    longest: int,
    *,
    words: Tensor,
    caption_places: Tensor,
    image_places: Tensor,
    sep: Tensor,
    gain: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """Return the first layer's input, `(rows, d)` in `dtype`.

    Args:
        ids: All captions' word pieces end to end, int64.
        caption_starts: `(n + 1,)` int32, where each caption starts in `ids`.
        tokens: `(n, m, d)`, contiguous.
        starts: `(n + 1,)` int32, where each sequence starts.
        rows: Rows of the result; those behind the last sequence are not written.
        longest: Upper bound of the sequences' lengths.
        words: `(vocabulary, d)`.
        caption_places: `(positions, d)`, added to the words.
        image_places: `(positions, d)`, added to the tokens and the last separator.
        sep: `(d,)`, the separator's embedding.
        gain: `(d,)`, weight of the layer normalisation.
        bias: `(d,)`, its bias.
        eps: Added to the variance.
        dtype: Of the result.
    """
    n, m, d = tokens.shape
    out = torch.empty((rows, d), dtype=dtype, device=tokens.device)
    grid = (n, triton.cdiv(longest, _EMBED_ROWS))
    _embed_kernel[grid](
        ids, caption_starts, starts, words, caption_places, image_places, tokens, sep, gain, bias,
        out, m, d, eps, ROWS=_EMBED_ROWS, WIDTH=triton.next_power_of_2(d), num_warps=4,
    )  # fmt: skip
    return out


def add_norm(x: Tensor, y: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return the layer normalisation of `x + y`, both `(rows, d)` and contiguous."""
    rows, d = x.shape
    out = torch.empty_like(x)
    _add_norm_kernel[(triton.cdiv(rows, _NORM_ROWS),)](
        x, y, gain, bias, out, rows, d, eps,
        ROWS=_NORM_ROWS, WIDTH=triton.next_power_of_2(d), num_warps=4,
    )  # fmt: skip
    return out


def attention(
    queries: Tensor,
    keys: Tensor,
    starts: Tensor,
    heads: int,
    longest: int,
    shortest: int,
    *,
    first_only: bool = False,
) -> Tensor:
    """Compute attention within each pair.

    Args:
        queries: `(rows, d)`, scaled.
        keys: `(rows, 2 d)`: keys, then values. May be a view with a larger distance of rows.
        starts: `(n + 1,)` int32.
        heads: Attention heads.
        longest: Upper bound of the lengths, at most `LONGEST`.
        shortest: Lower bound of the lengths of sequences that are not empty.
        first_only: Whether `queries`, `(n, d)`, holds one query a pair, that of its first row.

    Returns:
        As many rows as `queries`, `(., d)`, contiguous.
    """
    n, d = len(starts) - 1, queries.shape[1]
    keys0, keys1, rows = next(sizes for limit, sizes in _BLOCKS if longest <= limit)
    if first_only:
        rows = 16  # the smallest block of a matrix product
    out = torch.empty((len(queries), d), dtype=queries.dtype, device=queries.device)
    grid = (n * heads, 1 if first_only else triton.cdiv(longest, rows))
    _attention_kernel[grid](
        queries, queries.stride(0), keys, keys.stride(0), starts, out, heads, d,
        HEAD=d // heads, ROWS=rows, KEYS0=keys0, KEYS1=keys1, FULL=shortest >= keys0,
        FIRST=first_only, num_warps=1 if first_only else 4, num_stages=2,
    )  # fmt: skip
    return out
