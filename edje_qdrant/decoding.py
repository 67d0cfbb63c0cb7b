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
        self._device = torch.device(device)
        self._decode: Callable[[Tensor], Tensor]
        if isinstance(codec, Float16Codec):
            shape = (codec.num_tokens, codec.token_dim)
            self._decode = lambda codes: codes.view(torch.float16).view(-1, *shape)
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
        return self._decode(torch.from_numpy(writeable).to(self._device))


def _scaled(codec: ScaledCodec, codes: Tensor) -> Tensor:
    m = codec.num_tokens
    scales = codes[:, : 2 * m].contiguous().view(torch.float16)  # (n, m)
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
    pieces, centroids, width = codec.codebook.shape
    table = torch.from_numpy(codec.codebook.copy()).to(device).view(pieces * centroids, width)
    starts = torch.arange(0, pieces * centroids, centroids, device=device, dtype=torch.int32)

    def decode(codes: Tensor) -> Tensor:
        rows = codes.view(-1, pieces) + starts  # (n * m, M)
        tokens = table.index_select(0, rows.flatten())
        tokens = tokens.view(len(codes), codec.num_tokens, pieces * width)
        return tokens[..., : codec.token_dim].contiguous()

    return decode
