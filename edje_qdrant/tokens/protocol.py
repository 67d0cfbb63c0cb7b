"""Interface of token stores, and the types that they return."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import ConfigError
from edje_qdrant.tokens.codecs import Codec

__all__ = ["EmptyCodes", "StoredCodes", "TokenReference", "TokenStore", "decoded", "empty_codes"]

#: Data in a point's payload under `_edje`: enough to find an image's tokens and to check them.
TokenReference = Mapping[str, Any]

#: Allocates a uint8 array of a shape.
EmptyCodes = Callable[[tuple[int, int]], NDArray[np.uint8]]


def empty_codes(shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Allocate a uint8 array in ordinary memory."""
    return np.empty(shape, np.uint8)


@dataclass(frozen=True, slots=True)
class StoredCodes:
    """Hold encoded tokens of images, as they are stored, all of one codec.

    Attributes:
        codec: Decodes them.
        rows: `(k,)` rows of these images in the request, ascending.
        codes: `(k, codec.nbytes)` uint8, checked against their references.
    """

    codec: Codec
    rows: NDArray[np.intp]
    codes: NDArray[np.uint8]


class TokenStore(ABC):
    """Store `(m, d_text)` float16 tokens of images."""

    @property
    @abstractmethod
    def contract(self) -> TokenContract:
        """Return the contract of the model that wrote the tokens, codec included."""

    @property
    @abstractmethod
    def codec(self) -> Codec:
        """Return the codec that encodes new tokens."""

    @property
    @abstractmethod
    def in_payload(self) -> bool:
        """Return whether references contain the tokens, so that reading needs whole payloads."""

    @abstractmethod
    def with_codec(self, codec: Codec) -> TokenStore:
        """Return a store of the same tokens that encodes new tokens with `codec`.

        Raises:
            CollectionLockedError: Another process is writing.
            StoreError: The codec cannot be stored.
        """

    def put(self, image_ids: Sequence[str], tokens: NDArray[np.float16]) -> list[TokenReference]:
        """Write `(n, m, d_text)` tokens; return one reference for each image, in order.

        Raises:
            ConfigError: The tokens do not fit the contract, or there are more or fewer ids than
                images.
            CollectionLockedError: As `put_codes`.
            StoreError: As `put_codes`.
        """
        codes = self.codec.encode(tokens)
        if len(image_ids) != len(codes):
            raise ConfigError(f"{len(image_ids)} ids for the tokens of {len(codes)} images")
        return self.put_codes(codes)

    @abstractmethod
    def put_codes(self, codes: NDArray[np.uint8]) -> list[TokenReference]:
        """Write `(n, codec.nbytes)` uint8 encoded by `codec`; return references, in order."""

    @abstractmethod
    def flush(self) -> None:
        """Make everything that was put durable."""

    @abstractmethod
    def codes(
        self,
        image_ids: Sequence[str],
        references: Sequence[TokenReference],
        empty: EmptyCodes = empty_codes,
    ) -> list[StoredCodes]:
        """Read tokens as they are stored, each image in exactly one of the results.

        Args:
            image_ids: `n` ids.
            references: `n` references.
            empty: Allocates the arrays of the results, in pinned memory for example.

        Raises:
            TokensNotFoundError: A reference points to no tokens; names the ids.
            TokensCorruptError: A reference is invalid, or bytes differ from those written; names
                the ids.
            StoreError: The store is closed, or cannot be read.
        """

    def get(
        self, image_ids: Sequence[str], references: Sequence[TokenReference]
    ) -> NDArray[np.float16]:
        """Read tokens as `(n, m, d_text)`, in order; raises the errors of `codes`."""
        shape = (len(image_ids), self.contract.num_tokens, self.contract.token_dim)
        return decoded(self.codes(image_ids, references), shape)

    @abstractmethod
    def nbytes_per_image(self) -> int:
        """Return the bytes that one image's tokens take, as stored."""

    @abstractmethod
    def close(self) -> None:
        """Close the files; a second call does nothing."""


def decoded(parts: Sequence[StoredCodes], shape: tuple[int, int, int]) -> NDArray[np.float16]:
    """Decode parts that cover all rows into `(n, m, d_text)` tokens of `shape`, in row order."""
    if len(parts) == 1:
        return parts[0].codec.decode(parts[0].codes)
    tokens = np.empty(shape, np.float16)
    for part in parts:
        tokens[part.rows] = part.codec.decode(part.codes)
    return tokens
