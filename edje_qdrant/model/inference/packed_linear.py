"""Linear layers for inference: packed weights, fused with activation and addition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "Activation",
    "Kernel",
    "Linear",
    "has_int8_kernels",
    "has_packed_kernels",
    "pack_linear",
]

Activation = Literal["gelu"] | Callable[[Tensor], Tensor] | None

#: How a linear layer is computed: in a floating-point precision, or in 8-bit integers.
Kernel = Literal["float32", "bfloat16", "float16", "int8"]

# Number of input rows that packed weights are optimised for; other numbers work too.
_ROWS = 1024


class Linear(Protocol):
    """Compute `activation(x W + b) + add` for `(rows, in)`."""

    def __call__(
        self, x: Tensor, *, activation: Activation = None, add: Tensor | None = None
    ) -> Tensor:
        """Return `(rows, out)`."""
        ...


def pack_linear(weight: Tensor, bias: Tensor, kernel: Kernel) -> Linear:
    """Pack a linear layer for a kernel.

    Args:
        weight: `(out, in)`, in any precision.
        bias: `(out,)`.
        kernel: How to compute. `int8` needs `has_int8_kernels`.
    """
    if kernel == "int8":
        return _Int8(weight.float(), bias.float())
    dtype = getattr(torch, kernel)
    weight, bias = weight.to(dtype), bias.to(dtype)
    if weight.device.type == "cpu" and has_packed_kernels(dtype):
        return _Packed(weight, bias)
    return _Plain(weight, bias)


def has_packed_kernels(dtype: torch.dtype) -> bool:
    """Return whether this build of torch and this processor have oneDNN's kernels for `dtype`."""
    if dtype == torch.bfloat16:
        return _works("bfloat16")
    return dtype == torch.float32 and _works("float32")


def has_int8_kernels() -> bool:
    """Return whether torch and the processor have 8-bit integer kernels with bfloat16 output."""
    return _works("int8")


class _Plain:
    """`torch.nn.functional.linear`, available everywhere."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._weight, self._bias = weight, bias

    def __call__(
        self, x: Tensor, *, activation: Activation = None, add: Tensor | None = None
    ) -> Tensor:
        if activation == "gelu" and x.device.type == "cuda" and x.dtype != torch.float32:
            # One kernel; it computes GELU's tanh form, which differs by less than 5e-4.
            y = torch._addmm_activation(self._bias, x, self._weight.T, use_gelu=True)
        else:
            y = _activate(functional.linear(x, self._weight, self._bias), activation)
        return y if add is None else y + add


class _Packed:
    """oneDNN's kernels, which use AVX-512 and AMX on processors of every maker."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._ops: Any = torch.ops.mkldnn
        self._weight = self._ops._reorder_linear_weight(weight.contiguous(), _ROWS)
        self._bias = bias.contiguous()

    def __call__(
        self, x: Tensor, *, activation: Activation = None, add: Tensor | None = None
    ) -> Tensor:
        linear = self._ops._linear_pointwise
        if add is not None and activation is None:
            return cast("Tensor", linear.binary(x, add, self._weight, self._bias, "add"))
        name, algorithm = ("gelu", "none") if activation == "gelu" else ("none", "")
        y = linear(x, self._weight, self._bias, name, [], algorithm)
        if activation is not None and activation != "gelu":
            y = activation(y)
        return cast("Tensor", y if add is None else y + add)


class _Int8:
    """8-bit integers with one scale per output; the input's scale is computed for each call."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._ops: Any = torch.ops.onednn
        self._scales = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12)
        codes = (weight / self._scales[:, None]).round().to(torch.int8)
        self._weight = self._ops.qlinear_prepack(codes, [_ROWS, weight.shape[1]])
        self._zeros = torch.zeros(len(weight), dtype=torch.int64)
        self._bias = bias.contiguous()

    def __call__(
        self, x: Tensor, *, activation: Activation = None, add: Tensor | None = None
    ) -> Tensor:
        codes, scale, zero = _quantize(x)
        name, algorithm = ("gelu", "none") if activation == "gelu" else ("none", "")
        y = self._ops.qlinear_pointwise(
            codes, scale, zero, self._weight, self._scales, self._zeros, self._bias,
            1.0, 0, torch.bfloat16, name, [], algorithm,
        )  # fmt: skip
        if activation is not None and activation != "gelu":
            y = activation(y)
        return cast("Tensor", y if add is None else y.add_(add))


def _quantize(x: Tensor) -> tuple[Tensor, float, int]:
    """Quantize `x` to unsigned bytes; return them with their scale and zero point."""
    low, high = (float(bound) for bound in torch.aminmax(x))
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / 255, 1e-12)
    if scale != scale or scale == float("inf"):
        return torch.zeros_like(x, dtype=torch.uint8), float("nan"), 0
    zero = round(-low / scale)
    # torch converts to signed bytes fast, to unsigned bytes slowly. They differ in the sign bit.
    codes = x.mul(1 / scale).add_(zero - 128).round_().clamp_(-128, 127).to(torch.int8)
    return codes.bitwise_xor_(-128).view(torch.uint8), scale, zero


def _activate(x: Tensor, activation: Activation) -> Tensor:
    if activation is None:
        return x
    return functional.gelu(x) if activation == "gelu" else activation(x)


_known: dict[Kernel, bool] = {}


def _works(kernel: Kernel) -> bool:
    """Return whether a kernel gives right results; tried once per process."""
    if kernel not in _known:
        _known[kernel] = _is_right(kernel)
    return _known[kernel]


def _is_right(kernel: Kernel) -> bool:
    # These operators belong to torch's compiler; no stable interface is promised.
    weight = torch.linspace(-1, 1, 32 * 32).view(32, 32).sin()
    x, bias = weight[:8] * 3, weight[0]
    expected = functional.gelu(functional.linear(x, weight, bias))
    try:
        if kernel == "int8":
            if not torch.cpu._is_vnni_supported():
                return False
            found = _Int8(weight, bias)(x.bfloat16(), activation="gelu")
        else:
            if kernel == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
                return False
            dtype = getattr(torch, kernel)
            packed = _Packed(weight.to(dtype), bias.to(dtype))
            found = packed(x.to(dtype), activation="gelu")
            added = packed(x.to(dtype), add=x.to(dtype))
            plain = functional.linear(x, weight, bias) + x
            if not torch.allclose(added.float(), plain, atol=0.3, rtol=0.03):
                return False
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False
    return torch.allclose(found.float(), expected, atol=0.3, rtol=0.03)
