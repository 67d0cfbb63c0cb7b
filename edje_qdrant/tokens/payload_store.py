"""Tokens in the points' own payload, for collections on a server that many machines share."""

from __future__ import annotations

import binascii
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import ConfigError, TokensCorruptError, TokensNotFoundError
from edje_qdrant.tokens.checksum import checksums, named, require_checksums
from edje_qdrant.tokens.codecs import codec_for
from edje_qdrant.tokens.protocol import TokenReference

__all__ = ["PayloadTokenStore"]


class PayloadTokenStore:
    """Turn tokens into references that carry them: `{"tokens": base64 text, "checksum": text}`.

    Nothing is kept here: writing the point writes its tokens.
    """

    in_payload = True

    def __init__(self, contract: TokenContract) -> None:
        """Prepare for the contract's shape and codec.

        Raises:
            ConfigError: The codec is unknown.
        """
        self._codec = codec_for(contract.codec, contract.num_tokens, contract.token_dim)

    def put(self, image_ids: Sequence[str], tokens: NDArray[np.float16]) -> list[TokenReference]:
        """Encode `(n, m, d_text)` tokens; return one reference a picture, in order.

        Raises:
            ConfigError: The tokens do not fit the contract, or the ids' number the tokens'.
        """
        codes = self._codec.encode(tokens)
        if len(image_ids) != len(codes):
            raise ConfigError(f"{len(image_ids)} ids for the tokens of {len(codes)} pictures")
        return [
            {"tokens": binascii.b2a_base64(row, newline=False).decode(), "checksum": checksum}
            for row, checksum in zip(codes, checksums(codes), strict=True)
        ]

    def flush(self) -> None:
        """Do nothing: the points carry the tokens."""

    def get(
        self, image_ids: Sequence[str], references: Sequence[TokenReference]
    ) -> NDArray[np.float16]:
        """Decode `(n, m, d_text)` tokens, in order, each checked against its reference.

        Raises:
            TokensNotFoundError: A reference carries no tokens.
            TokensCorruptError: They are not what was written; names the ids.
        """
        rows: list[bytes] = []
        missing: list[str] = []
        damaged: list[str] = []
        for image_id, reference in zip(image_ids, references, strict=True):
            text = reference.get("tokens")
            if text is None:
                missing.append(image_id)
                continue
            try:
                row = binascii.a2b_base64(text)
            except (ValueError, TypeError):
                row = b""
            if len(row) != self._codec.nbytes:
                damaged.append(image_id)
            rows.append(row)
        if missing:
            raise TokensNotFoundError(
                f"the points {named(missing)} carry no tokens; delete these pictures and ingest "
                "them again",
                missing,
            )
        if damaged:
            raise TokensCorruptError(
                f"the tokens that the points {named(damaged)} carry are damaged; delete these "
                "pictures and ingest them again",
                damaged,
            )
        # A bytearray, so that the result can be written to: torch warns of arrays that cannot.
        codes = np.frombuffer(bytearray().join(rows), dtype=np.uint8)
        codes = codes.reshape(len(rows), self._codec.nbytes)
        require_checksums(image_ids, references, codes, where="the points' payload")
        return self._codec.decode(codes)

    def nbytes_per_image(self) -> int:
        """Return the characters of base64 text one picture's tokens take."""
        return 4 * ((self._codec.nbytes + 2) // 3)

    def close(self) -> None:
        """Do nothing."""
