"""Data types of weights, given as torch's or by name."""

from __future__ import annotations

from typing import TypeAlias

import torch

from edje_qdrant.errors import ConfigError

__all__ = ["DType", "as_dtype"]

#: `torch.bfloat16`, or its name: `"bfloat16"`.
DType: TypeAlias = "torch.dtype | str"

_NAMES = ("bfloat16", "float16", "float32", "float64")


def as_dtype(name: str, dtype: DType | None) -> torch.dtype | None:
    """Return torch's data type for an argument; None stays None.

    Args:
        name: The argument's name, for the message.
        dtype: A floating data type, or its name, with or without `torch.` before it.

    Raises:
        ConfigError: It is none of these.
    """
    if dtype is None:
        return None
    if isinstance(dtype, str | torch.dtype):
        short = str(dtype).removeprefix("torch.")
        if short in _NAMES:
            chosen: torch.dtype = getattr(torch, short)
            return chosen
        given = repr(dtype)
    else:
        given = f"a {type(dtype).__name__}"
    raise ConfigError(
        f"{name} is {given}; give a floating torch.dtype or its name: {', '.join(_NAMES)}"
    )
