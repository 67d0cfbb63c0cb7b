"""How tokens become bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import ConfigError

__all__ = ["Codec", "Float16Codec", "codec_for"]


class Codec(Protocol):
    """Turn a picture's `(m, d_text)` tokens into a fixed number of bytes, and back."""

    @property
    def name(self) -> str:
        """Return the name a contract keeps."""

    @property
    def nbytes(self) -> int:
        """Return the bytes one picture takes."""

    def encode(self, tokens: NDArray[np.float16]) -> NDArray[np.uint8]:
        """Turn `(n, m, d_text)` float16 into `(n, nbytes)` uint8.

        Raises:
            ConfigError: The tokens have another shape or dtype.
        """

    def decode(self, codes: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Turn `(n, nbytes)` uint8 into `(n, m, d_text)` float16."""


@dataclass(frozen=True, slots=True)
class Float16Codec:
    """Keep tokens exactly: two little-endian bytes a number.

    Attributes:
        num_tokens: Tokens a picture, `m`.
        token_dim: Width of a token, `d_text`.
    """

    num_tokens: int
    token_dim: int

    @property
    def name(self) -> str:
        """Return `"float16"`."""
        return "float16"

    @property
    def nbytes(self) -> int:
        """Return the bytes one picture takes."""
        return self.num_tokens * self.token_dim * 2

    def encode(self, tokens: NDArray[np.float16]) -> NDArray[np.uint8]:
        """Turn `(n, m, d_text)` float16 into `(n, nbytes)` uint8.

        Raises:
            ConfigError: The tokens have another shape or dtype.
        """
        shape = (self.num_tokens, self.token_dim)
        if tokens.ndim != 3 or tokens.shape[1:] != shape or tokens.dtype != np.float16:
            raise ConfigError(
                f"tokens must be float16 of shape (n, {shape[0]}, {shape[1]}), as the collection's "
                f"contract says, not {tokens.dtype} of shape {tokens.shape}"
            )
        little_endian = np.ascontiguousarray(tokens, dtype="<f2")
        return little_endian.view(np.uint8).reshape(len(tokens), self.nbytes)

    def decode(self, codes: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Turn `(n, nbytes)` uint8 into `(n, m, d_text)` float16, without a copy where it can."""
        tokens = np.ascontiguousarray(codes).view("<f2").astype(np.float16, copy=False)
        return tokens.reshape(len(codes), self.num_tokens, self.token_dim)


_CODECS: dict[str, Callable[[int, int], Codec]] = {"float16": Float16Codec}


def codec_for(name: str, num_tokens: int, token_dim: int) -> Codec:
    """Return the codec called `name` for `(num_tokens, token_dim)` tokens.

    Raises:
        ConfigError: There is no such codec; lists those there are.
    """
    if name not in _CODECS:
        raise ConfigError(f"unknown codec {name!r}; known: {', '.join(sorted(_CODECS))}")
    return _CODECS[name](num_tokens, token_dim)
