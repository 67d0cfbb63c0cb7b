"""Find out whether the Triton kernels can run here."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import torch

__all__ = ["fused_kernels"]

_HEADS = (16, 32, 64, 128)
_CAPABILITY = (8, 0)  # Triton computes bfloat16 matrix products from there on


def fused_kernels(device: torch.device, dtype: torch.dtype, head: int) -> ModuleType | None:
    """Return the module `cuda_kernels`, or None where its kernels cannot be used.

    Args:
        device: Where the weights are.
        dtype: Precision of the activations.
        head: Width of an attention head.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or head not in _HEADS:
        return None
    if torch.cuda.get_device_capability(device) < _CAPABILITY:
        return None
    return _kernels()


@lru_cache(maxsize=1)
def _kernels() -> ModuleType | None:
    try:
        from edje_qdrant.model.inference import cuda_kernels
    except ImportError:  # Triton comes with torch's CUDA builds for Linux alone
        return None
    return cuda_kernels
