"""Which precision to infer in."""

from __future__ import annotations

import time
from typing import Literal, cast

import torch

from edje_qdrant.model.inference.packed_linear import Kernel, has_packed_kernels, pack_linear

__all__ = ["PRECISIONS", "Precision", "choose_precision"]

#: `model` is the training form, in the model's own precision.
Precision = Literal["auto", "float32", "bfloat16", "float16", "int8", "model"]
PRECISIONS: tuple[Precision, ...] = ("auto", "float32", "bfloat16", "float16", "int8", "model")

# Narrower models spend their time between the products, and keep exact scores instead.
_NARROWEST = 256

# Without instructions for it, bfloat16 has to be this much faster to be worth its rounding. With
# them it is twice as fast, so that it is enough to see it no slower, on a busy machine as well.
_WORTH = 0.8
_ROWS, _REPEATS = 128, 20

_chosen: dict[tuple[int, int], Kernel] = {}


def choose_precision(width: int, dtype: torch.dtype, device: torch.device) -> Kernel:
    """Return what is best for a model of some width, whose weights are in `dtype`.

    On a CPU that is measured, once in a process for each width and number of threads (some 20 ms).
    """
    if device.type != "cpu":
        return cast("Kernel", str(dtype).removeprefix("torch."))
    if width < _NARROWEST or not has_packed_kernels(torch.bfloat16):
        return "float32"
    key = (width, torch.get_num_threads())
    if key not in _chosen:
        _chosen[key] = _measure(width)
    return _chosen[key]


def _measure(width: int) -> Kernel:
    weight, bias = torch.randn(4 * width, width), torch.zeros(4 * width)
    x = torch.randn(_ROWS, width)
    full, half = (pack_linear(weight, bias, kernel) for kernel in ("float32", "bfloat16"))
    y = x.bfloat16()
    best = {"float32": float("inf"), "bfloat16": float("inf")}
    for turn in range(1 + _REPEATS):
        for kernel, linear, rows in (("float32", full, x), ("bfloat16", half, y)):
            began = time.perf_counter()
            linear(rows)
            if turn:  # the first one sets up
                best[kernel] = min(best[kernel], time.perf_counter() - began)
    worth = 1.0 if _has_instructions() else _WORTH
    return "bfloat16" if best["bfloat16"] < worth * best["float32"] else "float32"


def _has_instructions() -> bool:
    """Return whether the processor multiplies bfloat16, as far as this torch can tell."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)
