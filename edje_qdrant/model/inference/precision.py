"""Choice of the precision for inference."""

from __future__ import annotations

import time
from typing import Literal, cast

import torch

from edje_qdrant.model.inference.packed_linear import Kernel, has_packed_kernels, pack_linear

__all__ = ["PRECISIONS", "Precision", "choose_precision"]

#: `model` is `JointEncoder`'s own forward, in the model's precision.
Precision = Literal["auto", "float32", "bfloat16", "float16", "int8", "model"]
PRECISIONS: tuple[Precision, ...] = ("auto", "float32", "bfloat16", "float16", "int8", "model")

# Narrower models gain nothing from bfloat16, as matrix products are not what takes their time.
_NARROWEST = 256

# bfloat16 is chosen if its time is at most this share of float32's. Processors with bfloat16
# instructions are twice as fast; there it only must not be slower, as a busy machine may show less.
_WORTH = 0.8
_ROWS, _REPEATS = 128, 20

_chosen: dict[tuple[int, int], Kernel] = {}


def choose_precision(width: int, dtype: torch.dtype, device: torch.device) -> Kernel:
    """Return the best kernel for a model of width `width` with weights in `dtype`.

    On a CPU it is measured once per process, width and number of threads (about 20 ms).
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
            if turn:  # the first call is warm-up
                best[kernel] = min(best[kernel], time.perf_counter() - began)
    worth = 1.0 if _has_instructions() else _WORTH
    return "bfloat16" if best["bfloat16"] < worth * best["float32"] else "float32"


def _has_instructions() -> bool:
    """Return whether the processor has bfloat16 instructions, if torch can tell."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)
