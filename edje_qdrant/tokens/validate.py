"""Checks of tokens before a codec encodes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import ConfigError

__all__ = ["check_finite", "check_shape"]


def check_shape(tokens: NDArray[Any], num_tokens: int, token_dim: int) -> None:
    """Check that tokens are `(n, num_tokens, token_dim)` float16.

    Raises:
        ConfigError: Shape or dtype differ.
    """
    if tokens.ndim != 3 or tokens.shape[1:] != (num_tokens, token_dim) or tokens.dtype != "f2":
        raise ConfigError(
            f"tokens must be float16 of shape (n, {num_tokens}, {token_dim}), as the collection's "
            f"contract says, not {tokens.dtype} of shape {tokens.shape}"
        )


def check_finite(numbers: NDArray[Any], codec: str) -> None:
    """Check that no number is infinite or NaN, for a codec that cannot store them.

    Raises:
        ConfigError: Some numbers are infinite or NaN.
    """
    if not np.isfinite(numbers).all():
        raise ConfigError(
            f"tokens hold infinite values or NaN, which {codec} cannot store; the model "
            "overflowed: encode in float32 or bfloat16"
        )
