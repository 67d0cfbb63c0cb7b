"""Bring candidates' tokens to where they are scored: codes cross the bus, and are decoded there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edje_qdrant.contract import TokenContract
from edje_qdrant.rerank.token_decoder import TokenDecoder
from edje_qdrant.tokens.codecs import Codec
from edje_qdrant.tokens.protocol import EmptyCodes, StoredCodes, empty_codes
from edje_qdrant.types import Candidate

__all__ = ["CodeSource", "DeviceCodes", "TokenReader"]


class CodeSource(Protocol):
    """Where encoded tokens are read from: a collection, or tokens attached to one."""

    @property
    def contract(self) -> TokenContract:
        """Return the contract that the tokens were written with."""

    def codes(
        self, candidates: Sequence[Candidate], *, empty: EmptyCodes = empty_codes
    ) -> list[StoredCodes]:
        """Read encoded tokens, each candidate in exactly one of the results.

        Args:
            candidates: `n` candidates; the same image can occur several times.
            empty: Allocates the arrays that are filled.

        Raises:
            TokensNotFoundError: Tokens are missing; names the ids.
            TokensCorruptError: Tokens are damaged; names the ids.
        """


@dataclass(frozen=True, slots=True)
class DeviceCodes:
    """Hold encoded tokens of images on a device, all of one codec.

    Attributes:
        codec: What decodes them.
        rows: `(k,)` places of these images among those asked for, ascending.
        stored: `(k, codec.nbytes)` uint8 as read, in host memory.
        codes: The same on the device.
    """

    codec: Codec
    rows: NDArray[np.intp]
    stored: NDArray[np.uint8]
    codes: Tensor


class TokenReader:
    """Read tokens of candidates onto one device; threads may share it.

    Where the device is a GPU, records are gathered from the side files straight into pinned memory,
    which torch keeps and uses again, and are copied from there while the caller goes on.

    Args:
        device: Where tokens are decoded, and stay.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._decoders: dict[tuple[str, str, int, int], TokenDecoder] = {}

    def tokens(self, source: CodeSource, candidates: Sequence[Candidate]) -> Tensor:
        """Return `(n, m, d_text)` float16 tokens, in order, the same image as often as named.

        Raises:
            TokensNotFoundError: Some have none; names the ids.
            TokensCorruptError: Some are damaged; names the ids.
        """
        parts = self.read(source, candidates)
        if len(parts) == 1:
            return self.decode(parts[0].codec, parts[0].codes)
        contract = source.contract
        shape = (len(candidates), contract.num_tokens, contract.token_dim)
        tokens = torch.empty(shape, dtype=torch.float16, device=self.device)
        for part in parts:
            rows = torch.from_numpy(part.rows).to(self.device)
            tokens[rows] = self.decode(part.codec, part.codes)
        return tokens

    def read(self, source: CodeSource, candidates: Sequence[Candidate]) -> list[DeviceCodes]:
        """Read tokens as they are stored, one part for each codec; raises what `tokens` does."""
        if self.device.type != "cuda":
            return [
                DeviceCodes(part.codec, part.rows, part.codes, _from_numpy(part.codes, self.device))
                for part in source.codes(candidates)
            ]
        staging = _Staging()
        return [
            DeviceCodes(part.codec, part.rows, part.codes, staging.to(self.device, part.codes))
            for part in source.codes(candidates, empty=staging.empty)
        ]

    def decode(self, codec: Codec, codes: Tensor) -> Tensor:
        """Turn `(n, codec.nbytes)` uint8 on the device into `(n, m, d_text)` float16."""
        key = (codec.name, codec.hash, codec.num_tokens, codec.token_dim)
        decoder = self._decoders.get(key)
        if decoder is None:
            decoder = self._decoders[key] = TokenDecoder(codec, self.device)
        return decoder.on_device(codes)


class _Staging:
    """Give pinned arrays to be filled, and know them again."""

    def __init__(self) -> None:
        self._pinned: dict[int, Tensor] = {}

    def empty(self, shape: tuple[int, int]) -> NDArray[np.uint8]:
        pinned = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        array: NDArray[np.uint8] = pinned.numpy()
        self._pinned[array.ctypes.data] = pinned
        return array

    def to(self, device: torch.device, codes: NDArray[np.uint8]) -> Tensor:
        # The very tensor that was allocated: its memory is used again only once it was copied.
        pinned = self._pinned.get(codes.ctypes.data)
        if pinned is None or pinned.shape != codes.shape:
            return _from_numpy(codes, device)
        return pinned.to(device, non_blocking=True)


def _from_numpy(codes: NDArray[np.uint8], device: torch.device) -> Tensor:
    # torch warns of arrays that cannot be written to; those of a memory map cannot.
    return torch.from_numpy(np.require(codes, requirements=["C", "W"])).to(device)
