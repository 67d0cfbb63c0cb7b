"""The joint encoder's weights packed for inference, and a signature that detects changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from edje_qdrant.model.flat_modules import FlatModules
from edje_qdrant.model.inference.fused_kernels import fused_kernels
from edje_qdrant.model.inference.packed_linear import Activation, Kernel, Linear, pack_linear
from edje_qdrant.model.joint_encoder import JointEncoder
from edje_qdrant.threads import TRANSFORMERS_LOCK

__all__ = [
    "AfterAttention",
    "LastLayer",
    "Layer",
    "Norm",
    "PackedWeights",
    "is_supported",
    "pack",
    "signature",
]

_LOWEST_GELU = -0.171  # GELU's least value is -0.16998, and kernels round


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer normalisation.

    Attributes:
        weight: `(d,)`.
        bias: `(d,)`.
        eps: Added to the variance.
        add_norm: Computes `norm(x + y)` in one pass over both, where the device has such a kernel.
    """

    weight: Tensor
    bias: Tensor
    eps: float
    add_norm: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return torch.nn.functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)

    def after(self, linear: Linear, x: Tensor, add: Tensor) -> Tensor:
        """Return `norm(linear(x) + add)`, as one kernel less where there is `add_norm`."""
        if self.add_norm is None:
            return self(linear(x, add=add))
        return self.add_norm(linear(x), add, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class AfterAttention:
    """The part of a layer after attention: output projection, MLP and both normalisations."""

    out: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    norm: Norm
    activation: Activation

    def __call__(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Return the layer's output `(rows, d)` from attention's `mixed` and the layer's input."""
        x = self.attention_norm.after(self.out, mixed, x)
        return self.norm.after(self.down, self.up(x, activation=self.activation), x)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer; `qkv` gives scaled queries, keys and values in one product."""

    qkv: Linear
    after: AfterAttention


@dataclass(frozen=True, slots=True)
class LastLayer:
    """The last layer: keys and values at all positions, a query at the first alone."""

    key_value: Linear
    query: Linear
    after: AfterAttention


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """All weights that inference reads.

    Attributes:
        signature: Of the weights that were packed.
        dtype: Precision of the activations.
        heads: Attention heads.
        words: Word embeddings `(vocabulary, d)`, shared with the joint encoder.
        caption_places: `(positions, d)`, sums of position and token type embeddings of captions.
        image_places: `(positions, d)`, likewise for tokens and the last separator.
        sep: `(d,)`, the separator's word embedding.
        embedding_norm: Applied to the summed embeddings.
        layers: All layers but the last.
        last: The last layer.
        kernels: The module `cuda_kernels`, where it can compute with these weights.
    """

    signature: tuple[Any, ...]
    dtype: torch.dtype
    heads: int
    words: Tensor
    caption_places: Tensor
    image_places: Tensor
    sep: Tensor
    embedding_norm: Norm
    layers: tuple[Layer, ...]
    last: LastLayer
    kernels: ModuleType | None


def is_supported(joint_encoder: JointEncoder) -> bool:
    """Return whether this is plain BERT; `FastJointEncoder` supports nothing else."""
    bert: Any = joint_encoder.language_model.bert
    config = bert.config
    if type(joint_encoder) is not JointEncoder or type(bert).__name__ != "BertModel":
        return False
    if getattr(config, "position_embedding_type", None) not in (None, "absolute"):
        return False
    linears = (
        module
        for layer in bert.encoder.layer
        for module in (
            layer.attention.self.query, layer.attention.self.key, layer.attention.self.value,
            layer.attention.output.dense, layer.intermediate.dense, layer.output.dense,
        )
    )  # fmt: skip
    # Adapters (LoRA) and quantizers replace these modules.
    return (
        not getattr(config, "is_decoder", False)
        and len(bert.encoder.layer) > 0
        and all(type(module) is torch.nn.Linear and module.bias is not None for module in linears)
    )


def signature(joint_encoder: JointEncoder, kernel: Kernel, flat: FlatModules) -> tuple[Any, ...]:
    """Return a value that changes when a weight is replaced, moved or written in place.

    Writes through `.data` are not detected: torch does not count them.

    Args:
        joint_encoder: Whose weights.
        kernel: The kernel they are packed for.
        flat: Keeps the list of the modules between calls.
    """
    found: list[Any] = [kernel]
    parts = (joint_encoder.language_model.bert, joint_encoder.pooler, joint_encoder.classifier)
    for module in flat.below(*parts):
        for weight in module._parameters.values():
            if weight is not None:
                found.append(weight.data_ptr())
                found.append(0 if weight.is_inference() else weight._version)
    last = joint_encoder.classifier.weight
    found.append((last.dtype, last.device))
    return tuple(found)


def pack(joint_encoder: JointEncoder, kernel: Kernel, sign: tuple[Any, ...]) -> PackedWeights:
    """Pack the weights for `kernel`, as a second copy of the layers' weights.

    Args:
        joint_encoder: Whose weights.
        kernel: How the packed weights are computed with.
        sign: The weights' `signature`.
    """
    bert: Any = joint_encoder.language_model.bert
    config, embeddings = bert.config, bert.embeddings
    dtype = torch.bfloat16 if kernel == "int8" else getattr(torch, kernel)
    heads = int(config.num_attention_heads)
    scale = (config.hidden_size // heads) ** -0.5
    activation = _activation(config.hidden_act)
    lowest = _LOWEST_GELU if activation == "gelu" else None
    words = embeddings.word_embeddings.weight
    kernels = fused_kernels(words.device, dtype, config.hidden_size // heads)
    # The products of attention, a third of all, stay above 8 bits, as they change the order of
    # candidates most. One row per image, as in the last layer, is not faster in 8 bits.
    small: Kernel = "bfloat16" if kernel == "int8" else kernel

    def norm(module: Any) -> Norm:
        # Only on a CPU may the weights' precision differ from the input's.
        kept = torch.float32 if module.weight.device.type == "cpu" else dtype
        add_norm = None if kernels is None else kernels.add_norm
        return Norm(module.weight.to(kept), module.bias.to(kept), module.eps, add_norm)

    def linear(module: Any, kernel: Kernel, **inputs: Any) -> Linear:
        return pack_linear(module.weight, module.bias, kernel, **inputs)

    def joined(modules: list[Any], factors: list[float]) -> Linear:
        # Scale in float32, before rounding to the kernel's precision.
        pairs = list(zip(modules, factors, strict=True))
        weight = torch.cat([module.weight.float() * factor for module, factor in pairs])
        bias = torch.cat([module.bias.float() * factor for module, factor in pairs])
        return pack_linear(weight, bias, small)

    def split(layer: Any) -> tuple[Any, Any, Any]:
        attention = layer.attention.self
        return attention.query, attention.key, attention.value

    def after_attention(layer: Any, kernel: Kernel) -> AfterAttention:
        before = layer.attention.output.LayerNorm  # standardised values are rarely above 3
        sizes = 3 * before.weight.float().abs() + before.bias.float().abs()
        return AfterAttention(
            out=linear(layer.attention.output.dense, small),
            attention_norm=norm(before),
            up=linear(layer.intermediate.dense, kernel, sizes=sizes.clamp(min=1e-3)),
            down=linear(layer.output.dense, kernel, lowest=lowest),
            norm=norm(layer.output.LayerNorm),
            activation=activation,
        )

    layers = [
        Layer(joined([*split(layer)], [scale, 1, 1]), after_attention(layer, kernel))
        for layer in bert.encoder.layer[:-1]
    ]
    end = bert.encoder.layer[-1]
    query, key, value = split(end)
    last = LastLayer(
        key_value=joined([key, value], [1, 1]),
        query=pack_linear(query.weight.float() * scale, query.bias.float() * scale, small),
        after=after_attention(end, small),
    )
    places, kinds = embeddings.position_embeddings.weight, embeddings.token_type_embeddings.weight
    return PackedWeights(
        signature=sign,
        dtype=dtype,
        heads=heads,
        words=words,
        caption_places=places + kinds[0],
        image_places=places + kinds[1],
        sep=words[joint_encoder.sep_token_id].clone(),
        embedding_norm=Norm(
            embeddings.LayerNorm.weight, embeddings.LayerNorm.bias, embeddings.LayerNorm.eps
        ),
        layers=tuple(layers),
        last=last,
        kernels=kernels,
    )


def _activation(name: Any) -> Activation:
    with TRANSFORMERS_LOCK:
        from transformers.activations import ACT2FN

    if name == "gelu":
        return "gelu"
    found: Activation = name if callable(name) else ACT2FN[name]
    return found
