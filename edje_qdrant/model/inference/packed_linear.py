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
# Numbers that are rounded at a time: their copy in float32 stays in the processor's caches.
_BLOCK = 2**17


class Linear(Protocol):
    """Compute `activation(x W + b) + add` for `(rows, in)`."""

    def __call__(
        self, x: Tensor, *, activation: Activation = None, add: Tensor | None = None
    ) -> Tensor:
        """Return `(rows, out)`."""
        ...


def pack_linear(
    weight: Tensor,
    bias: Tensor,
    kernel: Kernel,
    *,
    sizes: Tensor | None = None,
    lowest: float | None = None,
) -> Linear:
    """Pack a linear layer for a kernel.

    Args:
        weight: `(out, in)`, in any precision.
        bias: `(out,)`.
        kernel: How to compute. `int8` needs `has_int8_kernels`, and is more exact if something is
            known of the inputs; other kernels ignore that.
        sizes: `(in,)`, how large each input can be expected to be.
        lowest: The least value of an input. If given, each row has a scale of its own.
    """
    if kernel == "int8":
        if lowest is not None:
            return _Int8Rows(weight.float(), bias.float(), lowest)
        return _Int8(weight.float(), bias.float(), sizes)
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


class _Int8Product:
    """A product of bytes with weights of 8 bits, which have one scale per output."""

    def __init__(self, weight: Tensor) -> None:
        self._ops: Any = torch.ops.onednn
        self._scales = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12)
        codes = (weight / self._scales[:, None]).round()
        self._weight = self._ops.qlinear_prepack(codes.to(torch.int8), [_ROWS, weight.shape[1]])
        self._zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.sums = codes.sum(dim=1) * self._scales  # (out,), of each output's weights

    def __call__(
        self, codes: Tensor, scale: float, zero: int, bias: Tensor | None, *, gelu: bool = False
    ) -> Tensor:
        """Return `(rows, out)` bfloat16 from `(rows, in)` uint8."""
        name, algorithm = ("gelu", "none") if gelu else ("none", "")
        product: Tensor = self._ops.qlinear_pointwise(
            codes, scale, zero, self._weight, self._scales, self._zeros, bias, 1.0, 0,
            torch.bfloat16, name, [], algorithm,
        )  # fmt: skip
        return product


class _Int8:
    """8-bit integers; the input's scale is computed for each call, from all rows.

    With `sizes`, inputs are divided by their sizes and weights multiplied by them: a few inputs
    that are larger than the others in every row would else leave few steps for the others
    (SmoothQuant, arXiv 2211.10438).
    """

    def __init__(self, weight: Tensor, bias: Tensor, sizes: Tensor | None) -> None:
        self._shares = None if sizes is None else 1 / sizes
        self._product = _Int8Product(weight if sizes is None else weight * sizes)
        self._bias = bias.contiguous()

    def __call__(
        self, x: Tensor, *, activation: Activation = None, add: Tensor | None = None
    ) -> Tensor:
        # In float32 every pass is faster than in bfloat16, and more exact.
        x = x.to(torch.float32, copy=True) if self._shares is None else x * self._shares
        low, high = (float(bound) for bound in torch.aminmax(x))
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / 254, 1e-12)  # one step less, as rounding may add one
        if scale != scale or scale == float("inf"):
            codes, scale, zero = torch.zeros_like(x, dtype=torch.uint8), float("nan"), 0
        else:
            zero = round(-low / scale)
            codes = _unsigned(x.mul_(1 / scale).add_(zero - 128).round_().to(torch.int8))
        y = self._product(codes, scale, zero, self._bias, gelu=activation == "gelu")
        if activation is not None and activation != "gelu":
            y = activation(y)
        return y if add is None else y.add_(add)


class _Int8Rows:
    """8-bit integers with a scale for each row, for inputs that are never below `lowest`."""

    def __init__(self, weight: Tensor, bias: Tensor, lowest: float) -> None:
        self._product, self._lowest = _Int8Product(weight), lowest
        self._bias = (bias + lowest * self._product.sums).bfloat16()

    def __call__(
        self, x: Tensor, *, activation: Activation = None, add: Tensor | None = None
    ) -> Tensor:
        codes = torch.empty(x.shape, dtype=torch.int8)  # (rows, in)
        ranges = torch.empty(len(x), 1)  # from the lowest to a row's largest input
        size = max(1, _BLOCK // x.shape[1])
        scratch = torch.empty(min(size, len(x)), x.shape[1])  # new memory costs as much as a pass
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            part = scratch[: len(x) - start].copy_(x[rows])  # (r, in)
            torch.sub(part.amax(dim=1, keepdim=True), self._lowest, out=ranges[rows])
            steps = 255 / ranges[rows]
            codes[rows] = part.mul_(steps).add_(steps.mul_(-self._lowest).sub_(128)).round_()
        y = self._product(_unsigned(codes), 1 / 255, 0, None)  # (rows, out)
        y = _activate(y.mul_(ranges.bfloat16()).add_(self._bias), activation)
        return y if add is None else y.add_(add)


def _unsigned(codes: Tensor) -> Tensor:
    """Return bytes from -128 to 127 as bytes from 0 to 255, in place."""
    # torch converts to signed bytes fast, to unsigned bytes slowly. They differ in the sign bit.
    return codes.bitwise_xor_(-128).view(torch.uint8)


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
            found = _Int8(weight, bias, weight.abs().amax(dim=0) + 1)(
                x.bfloat16(), activation="gelu"
            )
            rows = _Int8Rows(weight, bias, -3.0)(x.bfloat16(), activation="gelu")
            if not torch.allclose(rows.float(), expected, atol=0.3, rtol=0.03):
                return False
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
