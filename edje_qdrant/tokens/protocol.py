"""Where tokens live, behind one protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.tokens.codecs import Codec

__all__ = ["StoredCodes", "TokenReference", "TokenStore", "decoded"]

#: What a point's payload keeps under `_edje`: enough to find an image's tokens and to check them.
TokenReference = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredCodes:
    """Hold encoded tokens of images, as they are stored, all of one codec.

    Attributes:
        codec: What decodes them.
        rows: `(k,)` places of these images among those asked for, ascending.
        codes: `(k, codec.nbytes)` uint8, checked against their references.
    """

    codec: Codec
    rows: NDArray[np.intp]
    codes: NDArray[np.uint8]


class TokenStore(Protocol):
    """Keep `(m, d_text)` float16 tokens for each image."""

    #: Whether the tokens travel in the reference itself, so that reading needs the whole payload.
    in_payload: bool

    @property
    def codec(self) -> Codec:
        """Return what new tokens are encoded with."""

    def put(self, image_ids: Sequence[str], tokens: NDArray[np.float16]) -> list[TokenReference]:
        """Write `(n, m, d_text)` tokens; return one reference an image, in order."""

    def put_codes(self, codes: NDArray[np.uint8]) -> list[TokenReference]:
        """Write `(n, codec.nbytes)` uint8 that `codec` made; return references, in order."""

    def flush(self) -> None:
        """Make everything put so far durable."""

    def codes(
        self, image_ids: Sequence[str], references: Sequence[TokenReference]
    ) -> list[StoredCodes]:
        """Read tokens as they are stored, each image in exactly one of the results.

        Raises:
            TokensNotFoundError: A reference points outside the store; names the ids.
            TokensCorruptError: Bytes differ from what was written; names the ids.
        """

    def get(
        self, image_ids: Sequence[str], references: Sequence[TokenReference]
    ) -> NDArray[np.float16]:
        """Read tokens back as `(n, m, d_text)`, in order; raises what `codes` does."""

    def nbytes_per_image(self) -> int:
        """Return the bytes one image's tokens take, as stored."""

    def close(self) -> None:
        """Let go of the files; a second call does nothing."""


def decoded(parts: Sequence[StoredCodes], shape: tuple[int, int, int]) -> NDArray[np.float16]:
    """Return the tokens of parts that cover all rows, of `shape`, in the order asked for."""
    if len(parts) == 1:
        return parts[0].codec.decode(parts[0].codes)
    tokens = np.empty(shape, np.float16)
    for part in parts:
        tokens[part.rows] = part.codec.decode(part.codes)
    return tokens
