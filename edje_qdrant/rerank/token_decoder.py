"""Decode stored tokens where they are scored, so that only their codes cross the bus."""

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
    """Do in torch what a codec's `decode` does in numpy, to the same bits.

    Args:
        codec: Which; a codebook is put on the device once.
        device: Where codes are decoded, and tokens stay.

    Raises:
        ConfigError: The codec has no codebook yet, or is not one of this package's.
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
            raise ConfigError(f"torch decoding knows nothing of the codec {codec.name}")

    def __call__(self, codes: NDArray[np.uint8]) -> Tensor:
        """Turn `(n, nbytes)` uint8 into `(n, m, d_text)` float16 on the device.

        Raises:
            ConfigError: The codes have another shape or dtype.
        """
        if codes.ndim != 2 or codes.shape[1] != self._nbytes or codes.dtype != np.uint8:
            raise ConfigError(
                f"codes must be uint8 of shape (n, {self._nbytes}), not {codes.dtype} of shape "
                f"{codes.shape}"
            )
        # torch warns of arrays that cannot be written to; those of a memory map cannot.
        writeable = np.require(codes, requirements=["C", "W"])
        return self.on_device(torch.from_numpy(writeable).to(self._device))

    def on_device(self, codes: Tensor) -> Tensor:
        """Turn `(n, nbytes)` uint8 that is on the device already into `(n, m, d_text)` float16."""
        if not len(codes):  # an empty tensor's strides can be such that torch refuses them
            return torch.empty((0, *self._shape), dtype=torch.float16, device=self._device)
        return self._decode(codes)


def _halves(codes: Tensor) -> Tensor:
    """Return `(k,)` float16; flat, as torch minds the stride even of a single row."""
    return codes.reshape(-1).view(torch.float16)


def _scaled(codec: ScaledCodec, codes: Tensor) -> Tensor:
    m = codec.num_tokens
    scales = _halves(codes[:, : 2 * m]).view(-1, m)
    stored = codes[:, 2 * m :].reshape(len(codes), m, -1)
    if codec.bits == 4:
        halves = torch.stack([stored << 4, stored & 240], dim=-1).view(torch.int8) >> 4
        integers = halves.flatten(2)[..., : codec.token_dim]
    else:
        integers = stored.view(torch.int8)
    numbers = integers * scales.float()[..., None]
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
        rows = codes.view(-1, count + 1)  # (n * m, M)
        rest = pieces.index_select(0, (rows[:, 1:] + starts).flatten())
        rest = rest.view(len(rows), count, width)
        tokens = torch.cat(
            [rest[:, :wide].flatten(1), rest[:, wide:, : width - 1].flatten(1)], dim=1
        )
        tokens += whole.index_select(0, rows[:, 0].int())
        tokens = tokens.clamp_(-largest, largest).half()
        return tokens.view(len(codes), codec.num_tokens, codec.token_dim)

    return decode
