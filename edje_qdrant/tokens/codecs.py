"""Codecs: conversion of tokens to bytes and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import ConfigError
from edje_qdrant.tokens.product_quantizer import ProductCodec
from edje_qdrant.tokens.validate import check_finite, check_shape

__all__ = ["CODECS", "Codec", "Float16Codec", "ProductCodec", "ScaledCodec", "codec_for"]

S = TypeVar("S", bound="_NoParameters")


@runtime_checkable
class Codec(Protocol):
    """Encode an image's `(m, d_text)` tokens as a fixed number of bytes, and decode them."""

    @property
    def name(self) -> str:
        """Return the name that a contract stores."""

    @property
    def hash(self) -> str:
        """Return 16 hexadecimal digits that identify the parameters; `""` if there are none."""

    @property
    def key(self) -> str:
        """Return the key stored with codes: the name, and 8 digits of the hash if there is one."""

    @property
    def nbytes(self) -> int:
        """Return the bytes that one image takes."""

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens per image, `m`."""

    @property
    def token_dim(self) -> int:
        """Return the width of a token, `d_text`."""

    @property
    def fitted(self) -> bool:
        """Return whether it can encode and decode; codecs without parameters always can."""

    def fit(self, tokens: NDArray[np.float16], *, seed: int = 0) -> Codec:
        """Return a codec fitted to `(n, m, d_text)` float16; itself if it has no parameters.

        Raises:
            ConfigError: Shape or dtype are wrong, or there are too few tokens.
            MissingExtraError: The library that fits parameters is not installed.
        """

    def parameters(self) -> bytes | None:
        """Return the parameters as bytes for `codec_for`, or None."""

    def encode(self, tokens: NDArray[np.float16]) -> NDArray[np.uint8]:
        """Encode `(n, m, d_text)` float16 as `(n, nbytes)` uint8.

        Raises:
            ConfigError: Shape or dtype are wrong.
        """

    def decode(self, codes: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Decode `(n, nbytes)` uint8 to `(n, m, d_text)` float16."""


_LARGEST = float(np.finfo(np.float16).max)


class _NoParameters:
    """Base class of codecs without parameters."""

    __slots__ = ()

    @property
    def hash(self) -> str:
        """Return `""`."""
        return ""

    @property
    def fitted(self) -> bool:
        """Return `True`."""
        return True

    def fit(self: S, tokens: NDArray[np.float16], *, seed: int = 0) -> S:  # noqa: ARG002
        """Return this codec, which has no parameters."""
        return self

    def parameters(self) -> None:
        """Return None: this codec has no parameters."""


@dataclass(frozen=True, slots=True)
class Float16Codec(_NoParameters):
    """Store tokens exactly: two little-endian bytes per number.

    Attributes:
        num_tokens: Number of tokens per image, `m`.
        token_dim: Width of a token, `d_text`.
    """

    num_tokens: int
    token_dim: int

    @property
    def name(self) -> str:
        """Return `"float16"`."""
        return "float16"

    @property
    def key(self) -> str:
        """Return `"float16"`."""
        return self.name

    @property
    def nbytes(self) -> int:
        """Return the bytes that one image takes."""
        return self.num_tokens * self.token_dim * 2

    def encode(self, tokens: NDArray[np.float16]) -> NDArray[np.uint8]:
        """Encode `(n, m, d_text)` float16 as `(n, nbytes)` uint8.

        Raises:
            ConfigError: Shape or dtype are wrong.
        """
        check_shape(tokens, self.num_tokens, self.token_dim)
        little_endian = np.ascontiguousarray(tokens, dtype="<f2")
        return little_endian.view(np.uint8).reshape(len(tokens), self.nbytes)

    def decode(self, codes: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Decode `(n, nbytes)` uint8 to `(n, m, d_text)` float16, without a copy if possible."""
        tokens = np.ascontiguousarray(codes).view("<f2").astype(np.float16, copy=False)
        return tokens.reshape(len(codes), self.num_tokens, self.token_dim)


@dataclass(frozen=True, slots=True)
class ScaledCodec(_NoParameters):
    """Store each number as a small integer, with one scale per token.

    An image's record contains `m` scales as little-endian float16, then the integers: one per byte
    for 8 bits, two per byte for 4 bits, the first in the lower half. The error of a number is at
    most half the token's largest number divided by 127, or by 7.

    Attributes:
        num_tokens: Number of tokens per image, `m`.
        token_dim: Width of a token, `d_text`.
        bits: 8 or 4.
    """

    num_tokens: int
    token_dim: int
    bits: int

    @property
    def name(self) -> str:
        """Return `"int8"` or `"int4"`."""
        return f"int{self.bits}"

    @property
    def key(self) -> str:
        """Return `"int8"` or `"int4"`."""
        return self.name

    @property
    def nbytes(self) -> int:
        """Return the bytes that one image takes."""
        return self.num_tokens * (2 + self._width)

    def encode(self, tokens: NDArray[np.float16]) -> NDArray[np.uint8]:
        """Encode `(n, m, d_text)` float16 as `(n, nbytes)` uint8.

        Raises:
            ConfigError: Shape or dtype are wrong, or a number is not finite.
        """
        check_shape(tokens, self.num_tokens, self.token_dim)
        numbers = tokens.astype(np.float32, order="C")
        largest = np.abs(numbers).max(axis=2, initial=0.0)  # (n, m)
        check_finite(largest, self.name)
        scales = (largest / self._top).astype("<f2")
        # Divide by the scale as stored; a scale that rounds to 0 stands for a token of zeros.
        divisor = np.where(scales > 0, scales.astype(np.float32), np.inf)[..., None]
        integers = np.clip(np.rint(numbers / divisor), -self._top, self._top).astype(np.int8)
        if self.bits == 4:
            if self.token_dim % 2:
                integers = np.pad(integers, ((0, 0), (0, 0), (0, 1)))
            nibbles = integers.view(np.uint8) & 15
            integers = nibbles[..., 0::2] | nibbles[..., 1::2] << 4
        codes = np.empty((len(tokens), self.nbytes), np.uint8)
        codes[:, : 2 * self.num_tokens] = scales.view(np.uint8).reshape(-1, 2 * self.num_tokens)
        codes[:, 2 * self.num_tokens :] = integers.view(np.uint8).reshape(
            -1, self.num_tokens * self._width
        )
        return codes

    def decode(self, codes: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Decode `(n, nbytes)` uint8 to `(n, m, d_text)` float16."""
        codes = np.ascontiguousarray(codes)
        count, m = len(codes), self.num_tokens
        scales = np.ascontiguousarray(codes[:, : 2 * m]).view("<f2").reshape(count, m, 1)
        stored = codes[:, 2 * m :].reshape(count, m, self._width)
        if self.bits == 4:
            nibbles = np.stack([stored << 4, stored & 240], axis=-1).view(np.int8) >> 4
            integers = nibbles.reshape(count, m, 2 * self._width)[..., : self.token_dim]
        else:
            integers = stored.view(np.int8)
        numbers = integers * scales.astype(np.float32)
        # A scale that was rounded up can exceed float16's largest number by one step.
        return np.clip(numbers, -_LARGEST, _LARGEST, out=numbers).astype(np.float16)

    @property
    def _top(self) -> int:
        return int(2 ** (self.bits - 1) - 1)

    @property
    def _width(self) -> int:
        return self.token_dim if self.bits == 8 else (self.token_dim + 1) // 2


#: Name -> codec for `(num_tokens, token_dim)` tokens.
CODECS: dict[str, Callable[[int, int], Codec]] = {
    "float16": Float16Codec,
    "int8": partial(ScaledCodec, bits=8),
    "int4": partial(ScaledCodec, bits=4),
    "pq16": partial(ProductCodec, token_bytes=16),
    "pq24": partial(ProductCodec, token_bytes=24),
    "pq32": partial(ProductCodec, token_bytes=32),
    "pq48": partial(ProductCodec, token_bytes=48),
}


def codec_for(name: str, num_tokens: int, token_dim: int, parameters: bytes | None = None) -> Codec:
    """Return the codec called `name` for `(num_tokens, token_dim)` tokens.

    Args:
        name: One of `CODECS`.
        num_tokens: Number of tokens per image, `m`.
        token_dim: Width of a token, `d_text`.
        parameters: Bytes that `Codec.parameters` returned. Without them, a codec that needs
            parameters must be fitted before use.

    Raises:
        ConfigError: The name is unknown (lists the known ones), or the parameters are of another
            codec or for tokens of another width.
        TokensCorruptError: The parameters are damaged.
    """
    if not isinstance(name, str) or name not in CODECS:
        raise ConfigError(f"unknown codec {name!r}; known: {', '.join(sorted(CODECS))}")
    codec = CODECS[name](num_tokens, token_dim)
    if parameters is None:
        return codec
    if not isinstance(codec, ProductCodec):
        raise ConfigError(f"the codec {name} has no parameters, but {len(parameters)} bytes came")
    return codec.with_parameters(parameters)
