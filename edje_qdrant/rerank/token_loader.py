"""Load the tokens of candidates onto the device that scores them; codes are decoded there."""

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

__all__ = ["CodeSource", "DeviceCodes", "TokenReader", "pairs_at_once"]

# Maximum bytes of tokens in memory at a time; on a GPU, a share of its memory, as the scores of
# each slice are waited for.
_TOKEN_BYTES, _GPU_SHARE = 256 << 20, 1 / 16


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
        codec: Decodes them.
        rows: `(k,)` rows of these images among the requested ones, ascending.
        stored: `(k, codec.nbytes)` uint8 as read, in host memory.
        codes: The same on the device.
    """

    codec: Codec
    rows: NDArray[np.intp]
    stored: NDArray[np.uint8]
    codes: Tensor


class TokenReader:
    """Read the tokens of candidates onto one device; safe in several threads.

    For a GPU, records of side files are gathered into pinned memory, which torch reuses, and copied
    from there asynchronously.

    Args:
        device: Device on which tokens are decoded and returned.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._decoders: dict[tuple[str, str, int, int], TokenDecoder] = {}

    def tokens(self, source: CodeSource, candidates: Sequence[Candidate]) -> Tensor:
        """Read `(n, m, d_text)` float16 tokens, in the order of the candidates.

        Raises:
            TokensNotFoundError: Tokens are missing; names the ids.
            TokensCorruptError: Tokens are damaged; names the ids.
        """
        parts = self.read(source, candidates)
        if len(parts) == 1:
            return self.decode(parts[0].codec, parts[0].codes)
        contract = source.contract
        shape = (len(candidates), contract.num_tokens, contract.token_dim)
        tokens = torch.empty(shape, dtype=torch.float16, device=self.device)  # (n, m, d_text)
        for part in parts:
            rows = torch.from_numpy(part.rows).to(self.device)
            tokens[rows] = self.decode(part.codec, part.codes)  # (k, m, d_text)
        return tokens

    def read(self, source: CodeSource, candidates: Sequence[Candidate]) -> list[DeviceCodes]:
        """Read encoded tokens, one part for each codec; raises the errors of `tokens`."""
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
        """Decode `(n, codec.nbytes)` uint8 on the device to `(n, m, d_text)` float16."""
        key = (codec.name, codec.hash, codec.num_tokens, codec.token_dim)
        if key not in self._decoders:
            self._decoders[key] = TokenDecoder(codec, self.device)
        return self._decoders[key].on_device(codes)


class _Staging:
    """Allocate pinned arrays, and find their tensors once they are filled."""

    def __init__(self) -> None:
        self._pinned: dict[int, Tensor] = {}

    def empty(self, shape: tuple[int, int]) -> NDArray[np.uint8]:
        pinned = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        array: NDArray[np.uint8] = pinned.numpy()
        self._pinned[array.ctypes.data] = pinned
        return array

    def to(self, device: torch.device, codes: NDArray[np.uint8]) -> Tensor:
        # Use the tensor that was allocated: torch then reuses its memory only after the copy.
        pinned = self._pinned.get(codes.ctypes.data)
        if pinned is None or pinned.shape != codes.shape:
            return _from_numpy(codes, device)
        return pinned.to(device, non_blocking=True)


def _from_numpy(codes: NDArray[np.uint8], device: torch.device) -> Tensor:
    if not codes.flags.carray:
        # torch warns about read-only arrays, such as those of a memory map.
        codes = np.require(codes, requirements=["C", "W"])
    return torch.from_numpy(codes).to(device)


def pairs_at_once(contract: TokenContract, device: torch.device) -> int:
    """Return how many candidates' tokens to have on a device at a time, at most."""
    most = _TOKEN_BYTES
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        most = max(most, int(_GPU_SHARE * memory))
    return max(1, most // (2 * contract.num_tokens * contract.token_dim))
