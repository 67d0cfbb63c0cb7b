"""Inference-optimised joint encoder: same weights, same scores, no padding, fused projections."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from edje_qdrant.errors import ConfigError
from edje_qdrant.model.flat_modules import FlatModules
from edje_qdrant.model.inference.cuda_graphs import CudaGraphs
from edje_qdrant.model.inference.fused_forward import PackedPairs, first_states, pack_pairs
from edje_qdrant.model.inference.packed_linear import Kernel, has_int8_kernels
from edje_qdrant.model.inference.packed_weights import PackedWeights, is_supported, pack, signature
from edje_qdrant.model.inference.precision import Precision, choose_precision
from edje_qdrant.model.joint_encoder import JointEncoder

__all__ = ["FastJointEncoder"]

# Pairs per slice on a CPU: few enough for the activations to stay in the processor's caches.
_PAIRS_AT_ONCE = 32

# Pairs per slice on a GPU: more are not faster, and take more memory.
_PAIRS_ON_GPU = 2048
_SMALLEST_SUM = 1e-30


class FastJointEncoder:
    """Score pairs as a `JointEncoder` does, with its weights, without padding.

    Only the `[CLS]` row of the last layer is computed. The layers' weights are copied into packed
    form once, and again after they change.

    Args:
        joint_encoder: Source of the weights; it is not changed, and may be trained in between.
        precision: `auto` is the weights' own precision on a GPU, and wherever the joint encoder's
            `dtype_is_explicit` is set. Otherwise, on a CPU, it is `bfloat16` if the processor has
            instructions for it and the model is at least 256 wide, else `float32`. `int8` is for
            CPUs only.

    Raises:
        ConfigError: The device does not support the precision, or the joint encoder is not plain
            BERT.
    """

    def __init__(self, joint_encoder: JointEncoder, precision: Precision = "auto") -> None:
        if not is_supported(joint_encoder):
            raise ConfigError(
                "the joint encoder is not plain BERT any more (did an adapter or a quantizer "
                "replace its layers?); use its own forward, precision='model'"
            )
        self._joint_encoder = joint_encoder
        self._precision: Precision = precision
        self._lock = threading.Lock()
        self._packed: PackedWeights | None = None
        self._flat = FlatModules()
        self._graphs = CudaGraphs(self._fused)
        if precision != "auto":
            self.kernel()

    def kernel(self) -> Kernel:
        """Return the kernel of the linear layers.

        Raises:
            ConfigError: The device does not support the precision.
        """
        weight = self._joint_encoder.classifier.weight
        if self._precision == "auto" or self._precision == "model":
            return choose_precision(
                self._joint_encoder.token_dim,
                weight.dtype,
                weight.device,
                explicit=self._joint_encoder.dtype_is_explicit,
            )
        if self._precision == "int8" and (weight.device.type != "cpu" or not has_int8_kernels()):
            raise ConfigError(
                "precision 'int8' needs a CPU with 8-bit dot products (AVX-512 VNNI, AMX) and a "
                "torch with oneDNN; use 'auto'"
            )
        if self._precision == "float16" and weight.device.type == "cpu":
            raise ConfigError("precision 'float16' is for GPUs; use 'bfloat16' or 'auto'")
        return self._precision

    def __call__(self, captions: Sequence[Tensor], tokens: Tensor) -> Tensor:
        """Score pairs.

        Args:
            captions: Groups of captions of equal length, each `(n_g, t_g)` int64,
                `[CLS] ... [SEP]` without padding.
            tokens: `(n, m, d_text)`, in the order of the groups' captions.

        Returns:
            `(n,)` logits.
        """
        with torch.inference_mode():
            packed = self._current()
            captions = [self._cut(ids) for ids in captions]
            on_gpu = tokens.device.type == "cuda"
            parts: list[Tensor] = []
            for group, first, count in _chunks(
                captions, _PAIRS_ON_GPU if on_gpu else _PAIRS_AT_ONCE
            ):
                own = tokens[first : first + count]  # (count, m, d_text)
                if on_gpu:
                    parts.append(self._score_on_gpu(packed, group, own))
                    continue
                logits = self._forward(packed, group, own)  # (count,)
                if packed.dtype == torch.bfloat16 and not bool(logits.isfinite().all()):
                    # Exponents of the attention may have left bfloat16's range.
                    logits = self._forward(packed, group, own, careful=True)
                parts.append(logits)
            return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _score_on_gpu(
        self, packed: PackedWeights, captions: Sequence[Tensor], tokens: Tensor
    ) -> Tensor:
        """Score pairs without waiting for the device."""
        longest = max(ids.shape[1] for ids in captions) + tokens.shape[1] + 1
        if packed.kernels is None or longest > packed.kernels.LONGEST:
            return self._forward(packed, captions, tokens)
        return self._graphs(packed, pack_pairs(captions, tokens))

    def _fused(self, packed: PackedWeights, pairs: PackedPairs) -> Tensor:
        return self._classify(first_states(packed, pairs))

    def _classify(self, first: Tensor) -> Tensor:
        """Return `(n,)` logits from the `(n, d)` states of `[CLS]`."""
        head = self._joint_encoder
        pooled = torch.tanh(head.pooler(first.to(head.pooler.weight.dtype)))
        return cast("Tensor", head.classifier(pooled)[:, 0])

    def _current(self) -> PackedWeights:
        """Return the packed weights; pack them again if the joint encoder's weights changed."""
        kernel = self.kernel()
        packed, sign = self._packed, signature(self._joint_encoder, kernel, self._flat)
        if packed is None or packed.signature != sign:
            with self._lock:
                packed = self._packed
                if packed is None or packed.signature != sign:
                    packed = self._packed = pack(self._joint_encoder, kernel, sign)
        return packed

    def _cut(self, ids: Tensor) -> Tensor:
        """Cut captions that are too long; their last position becomes `[SEP]`."""
        limit = self._joint_encoder.max_caption_length
        if ids.shape[1] <= limit:
            return ids
        ids = ids[:, :limit].clone()
        ids[:, -1] = self._joint_encoder.sep_token_id
        return ids

    def _forward(
        self,
        packed: PackedWeights,
        captions: Sequence[Tensor],
        tokens: Tensor,
        *,
        careful: bool = False,
    ) -> Tensor:
        shapes = [(len(ids), ids.shape[1] + tokens.shape[1] + 1) for ids in captions]
        x = _embed(packed, captions, tokens)  # (rows, d), all pairs' positions end to end
        attend = _attention_by_sdpa if careful or not _is_bf16_cpu(x) else _attention_by_products
        for layer in packed.layers:
            qkv = layer.qkv(x)  # (rows, 3 d)
            mixed = (
                torch.cat(
                    [attend(part, shape, packed.heads) for part, shape in _split(qkv, shapes)]
                )
                if len(shapes) > 1
                else attend(qkv, shapes[0], packed.heads)
            )
            x = layer.after(mixed, x)  # (rows, d)
        last = packed.last
        firsts = [part.view(*shape, -1)[:, 0] for part, shape in _split(x, shapes)]
        first = firsts[0].contiguous() if len(firsts) == 1 else torch.cat(firsts)  # (n, d)
        mixed = _attention_of_first(last.query(first), last.key_value(x), shapes, packed.heads)
        return self._classify(last.after(mixed, first))


def _chunks(captions: list[Tensor], at_once: int) -> list[tuple[list[Tensor], int, int]]:
    """Cut groups into slices of at most `at_once` pairs: groups, start and size of each."""
    parts: list[tuple[list[Tensor], int, int]] = []
    group: list[Tensor] = []
    first = count = 0
    for ids in captions:
        start = 0
        while start < len(ids):
            taken = ids[start : start + at_once - count]
            group.append(taken)
            start, count = start + len(taken), count + len(taken)
            if count == at_once:
                parts.append((group, first, count))
                group, first, count = [], first + count, 0
    if group:
        parts.append((group, first, count))
    return parts


def _embed(packed: PackedWeights, captions: Sequence[Tensor], tokens: Tensor) -> Tensor:
    """Return the first layer's input, `(rows, d)`."""
    embedded, start, m = [], 0, tokens.shape[1]
    for ids in captions:
        n, t = ids.shape
        words = functional.embedding(ids, packed.words) + packed.caption_places[:t]  # (n, t, d)
        places = packed.image_places[t : t + m + 1]  # (m + 1, d)
        image = tokens[start : start + n].to(words.dtype) + places[:m]  # (n, m, d)
        sep = (packed.sep + places[m]).expand(n, 1, -1)  # (n, 1, d)
        embedded.append(torch.cat([words, image, sep], dim=1).view(n * (t + m + 1), -1))
        start += n
    x = embedded[0] if len(embedded) == 1 else torch.cat(embedded)
    return packed.embedding_norm(x).to(packed.dtype)


def _split(rows: Tensor, shapes: list[tuple[int, int]]) -> list[tuple[Tensor, tuple[int, int]]]:
    parts = torch.split(rows, [n * length for n, length in shapes])
    return list(zip(parts, shapes, strict=True))


def _is_bf16_cpu(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.device.type == "cpu"


def _attention_by_sdpa(qkv: Tensor, shape: tuple[int, int], heads: int) -> Tensor:
    """Compute attention within each pair: `(n * s, 3 d)` -> `(n * s, d)`."""
    q, k, v = qkv.view(*shape, 3, heads, -1).permute(2, 0, 3, 1, 4)  # (n, heads, s, d / heads)
    mixed = functional.scaled_dot_product_attention(q, k, v, scale=1.0)
    return mixed.transpose(1, 2).reshape(len(qkv), -1)


def _attention_by_products(qkv: Tensor, shape: tuple[int, int], heads: int) -> Tensor:
    """Compute the same attention with two matrix products.

    For short sequences this is about four times as fast as torch's bfloat16 attention on a CPU.
    Exponents are not shifted by their maximum. On overflow the result is NaN, and `__call__`
    repeats the computation with torch's attention.
    """
    n, length = shape
    # (3, n * heads, s, d / heads)
    q, k, v = qkv.view(n, length, 3, heads, -1).permute(2, 0, 3, 1, 4).flatten(1, 2)
    weights = torch.bmm(q, k.transpose(1, 2)).exp_()  # (n * heads, s, s)
    sums = weights.sum(dim=-1, keepdim=True)
    # Below this, the exponents are subnormal and have lost digits.
    mixed = torch.bmm(weights, v).div_(sums.masked_fill_(sums < _SMALLEST_SUM, torch.nan))
    return mixed.view(n, heads, length, -1).transpose(1, 2).reshape(n * length, -1)


def _attention_of_first(
    query: Tensor, key_value: Tensor, shapes: list[tuple[int, int]], heads: int
) -> Tensor:
    """Compute attention of each pair's first position: `(n, d)`, `(rows, 2 d)` -> `(n, d)`."""
    mixed = []
    queries = torch.split(query, [n for n, _ in shapes])
    for (part, (n, length)), q in zip(_split(key_value, shapes), queries, strict=True):
        k, v = part.view(n, length, 2, heads, -1).permute(2, 0, 3, 1, 4)  # (n, heads, s, d / heads)
        found = functional.scaled_dot_product_attention(q.view(n, heads, 1, -1), k, v, scale=1.0)
        mixed.append(found.view(n, -1))
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)
