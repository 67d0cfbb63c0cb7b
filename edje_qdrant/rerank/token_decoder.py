"""Decode stored tokens with torch, on the device that scores them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edje_qdrant.errors import ConfigError
from edje_qdrant.tokens.codecs import Codec, Float16Codec, ProductCodec, ScaledCodec

__all__ = ["TokenDecoder"]


class TokenDecoder:
    """Decode tokens with torch, bit for bit as `Codec.decode` does with numpy.

    Args:
        codec: The codec; its codebook is copied to the device once.
        device: Device on which codes are decoded.

    Raises:
        ConfigError: The codec has no codebook yet, or is not supported.
    """

    def __init__(self, codec: Codec, device: torch.device | str) -> None:
        self._nbytes = codec.nbytes
        self._shape = (codec.num_tokens, codec.token_dim)
        self._device = torch.device(device)
        self._decode: Callable[[Tensor], Tensor]
        if isinstance(codec, Float16Codec):
            self._decode = lambda codes: _halves(codes).view(-1, *self._shape)
        elif isinstance(codec, ScaledCodec):
            self._decode = lambda codes: _scaled(codec, codes)
        elif isinstance(codec, ProductCodec):
            self._decode = _product(codec, self._device)
        else:
            raise ConfigError(
                f"codec {codec.name} cannot be decoded with torch; use one of this package's codecs"
            )

    def __call__(self, codes: NDArray[np.uint8]) -> Tensor:
        """Copy `(n, nbytes)` uint8 to the device and decode them to `(n, m, d_text)` float16.

        Raises:
            ConfigError: The codes have another shape or dtype.
        """
        if codes.ndim != 2 or codes.shape[1] != self._nbytes or codes.dtype != np.uint8:
            raise ConfigError(
                f"codes must be uint8 of shape (n, {self._nbytes}), not {codes.dtype} of shape "
                f"{codes.shape}"
            )
        # torch warns about read-only arrays, such as those of a memory map.
        writeable = np.require(codes, requirements=["C", "W"])
        return self.on_device(torch.from_numpy(writeable).to(self._device))

    def on_device(self, codes: Tensor) -> Tensor:
        """Decode `(n, nbytes)` uint8 on the device to `(n, m, d_text)` float16."""
        if not len(codes):  # torch cannot view an empty tensor with some strides
            return torch.empty((0, *self._shape), dtype=torch.float16, device=self._device)
        return self._decode(codes)


def _halves(codes: Tensor) -> Tensor:
    """View bytes as `(k,)` float16; flat, as torch checks the stride even of a single row."""
    return codes.reshape(-1).view(torch.float16)


def _scaled(codec: ScaledCodec, codes: Tensor) -> Tensor:
    m = codec.num_tokens
    scales = _halves(codes[:, : 2 * m]).view(-1, m)  # (n, m)
    stored = codes[:, 2 * m :].reshape(len(codes), m, -1)  # (n, m, bytes per token)
    if codec.bits == 4:
        halves = torch.stack([stored << 4, stored & 240], dim=-1).view(torch.int8) >> 4
        integers = halves.flatten(2)[..., : codec.token_dim]  # (n, m, d_text)
    else:
        integers = stored.view(torch.int8)  # (n, m, d_text)
    numbers = integers * scales.float()[..., None]  # (n, m, d_text)
    largest = torch.finfo(torch.float16).max
    return numbers.clamp_(-largest, largest).half()


def _product(codec: ProductCodec, device: torch.device) -> Callable[[Tensor], Tensor]:
    if codec.codebook is None:
        raise ConfigError(f"{codec.name} has no codebook yet; fit one before decoding with it")
    count, centroids, width = codec.codebook.pieces.shape
    pieces = torch.from_numpy(codec.codebook.pieces.astype(np.float32)).to(device).view(-1, width)
    whole = torch.from_numpy(codec.codebook.whole.astype(np.float32)).to(device)
    starts = torch.arange(0, count * centroids, centroids, device=device, dtype=torch.int32)
    wide = codec.wide_pieces
    largest = torch.finfo(torch.float16).max

    def decode(codes: Tensor) -> Tensor:
        rows = codes.view(-1, count + 1)  # (n * m, 1 + pieces)
        rest = pieces.index_select(0, (rows[:, 1:] + starts).flatten())  # (n * m * pieces, width)
        rest = rest.view(len(rows), count, width)  # (n * m, pieces, width)
        tokens = torch.cat(
            [rest[:, :wide].flatten(1), rest[:, wide:, : width - 1].flatten(1)], dim=1
        )  # (n * m, d_text)
        tokens += whole.index_select(0, rows[:, 0].int())
        tokens = tokens.clamp_(-largest, largest).half()
        return tokens.view(len(codes), codec.num_tokens, codec.token_dim)

    return decode
