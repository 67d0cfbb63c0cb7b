"""Choice of the precision for inference."""

from __future__ import annotations

from typing import Literal, cast

import torch

from edje_qdrant.model.inference.packed_linear import Kernel, has_packed_kernels

__all__ = ["PRECISIONS", "Precision", "choose_precision"]

#: `model` is `JointEncoder`'s own forward, in the model's precision.
Precision = Literal["auto", "float32", "bfloat16", "float16", "int8", "model"]
PRECISIONS: tuple[Precision, ...] = ("auto", "float32", "bfloat16", "float16", "int8", "model")

# Narrower models gain nothing from bfloat16, as matrix products are not what takes their time.
_NARROWEST = 256


def choose_precision(
    width: int, dtype: torch.dtype, device: torch.device, *, explicit: bool = False
) -> Kernel:
    """Return the kernel that `auto` stands for.

    It depends on the arguments and the processor alone, never on a measurement: every process of
    a machine computes the same scores.

    Args:
        width: Width of the model.
        dtype: Data type of the weights.
        device: Device of the weights. On a GPU, the kernel is that of `dtype`.
        explicit: Whether the user chose `dtype`; it is kept then, except for float16 on a CPU,
            which is computed in float32.

    Returns:
        On a CPU, for weights whose `dtype` was not chosen: `bfloat16` if the processor has
        instructions for it and the model is at least 256 wide, else `float32`.
    """
    if device.type != "cpu":
        return cast("Kernel", str(dtype).removeprefix("torch."))
    if explicit:
        return "bfloat16" if dtype == torch.bfloat16 else "float32"
    if width < _NARROWEST or not _has_instructions():
        return "float32"
    return "bfloat16" if has_packed_kernels(torch.bfloat16) else "float32"


def _has_instructions() -> bool:
    """Return whether the processor has bfloat16 instructions, if torch can tell."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)
