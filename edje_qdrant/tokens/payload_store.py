"""Tokens in the points' own payload, for collections on a server that many machines share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pybase64
from numpy.typing import NDArray

from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import ConfigError
from edje_qdrant.tokens.checksum import checksums
from edje_qdrant.tokens.codecs import Codec, codec_for
from edje_qdrant.tokens.protocol import (
    EmptyCodes,
    StoredCodes,
    TokenReference,
    TokenStore,
    empty_codes,
)
from edje_qdrant.tokens.references import Problems

__all__ = ["PayloadTokenStore"]


class PayloadTokenStore(TokenStore):
    """Turn tokens into references that contain them.

    References are `{"codec": key, "tokens": base64 text, "checksum": text}`. This class stores
    nothing: tokens are written with their point.
    """

    def __init__(
        self, contract: TokenContract, parameters: Mapping[str, bytes] | None = None
    ) -> None:
        """Prepare for the contract's shape and codec.

        Args:
            contract: Of the model that wrote the collection.
            parameters: Key -> codebook, for every codec of the collection that has one.

        Raises:
            ConfigError: The codec is unknown, or its codebook is missing.
            TokensCorruptError: A codebook is damaged.
        """
        self._contract = contract
        self._parameters = dict(parameters or {})
        self._codecs: dict[str, Codec] = {}
        codec = self._codec_of(contract.codec_key)
        if codec is None or codec.key != contract.codec_key:
            raise ConfigError(
                f"the codebook of the codec {contract.codec_key} is not stored with the "
                "collection; restore its metadata, or ingest into a new collection"
            )
        self._codec = codec

    @property
    def contract(self) -> TokenContract:
        """Return the contract of the model that wrote the tokens, codec included."""
        return self._contract

    @property
    def codec(self) -> Codec:
        """Return the codec that encodes new tokens."""
        return self._codec

    @property
    def in_payload(self) -> bool:
        """Return True: a reference contains the tokens."""
        return True

    def with_codec(self, codec: Codec) -> PayloadTokenStore:
        """Return a store that encodes with `codec` and decodes what earlier codecs encoded."""
        parameters = codec.parameters()
        added = {} if parameters is None else {codec.key: parameters}
        return PayloadTokenStore(
            self._contract.with_codec(codec.name, codec.hash), {**self._parameters, **added}
        )

    def put_codes(self, codes: NDArray[np.uint8]) -> list[TokenReference]:
        """Turn `(n, codec.nbytes)` uint8 encoded by `codec` into references, in order."""
        return [
            {
                "codec": self._codec.key,
                "tokens": pybase64.b64encode_as_string(row),
                "checksum": checksum,
            }
            for row, checksum in zip(codes, checksums(codes), strict=True)
        ]

    def flush(self) -> None:
        """Do nothing: the points contain the tokens."""

    def codes(
        self,
        image_ids: Sequence[str],
        references: Sequence[TokenReference],
        empty: EmptyCodes = empty_codes,
    ) -> list[StoredCodes]:
        """Read tokens as they are stored; see `TokenStore.codes`."""
        problems = Problems("the points' payload")
        groups: dict[str, list[int]] = {}  # codec key -> rows
        for row, (image_id, reference) in enumerate(zip(image_ids, references, strict=True)):
            key = str(reference.get("codec"))
            if reference.get("tokens") is None:
                problems.unknown.append(image_id)
            elif self._codec_of(key) is None:
                problems.invalid.append(image_id)
            else:
                groups.setdefault(key, []).append(row)
        stored: list[StoredCodes] = []
        for key, rows in groups.items():
            codec = self._codecs[key]
            codes = empty((len(rows), codec.nbytes))
            damaged = [
                place
                for place, row in enumerate(rows)
                if not _decode_into(codes[place], references[row]["tokens"])
            ]
            if damaged:
                problems.damaged += [image_ids[rows[place]] for place in damaged]
                codes = np.delete(codes, damaged, axis=0)
                rows = np.delete(rows, damaged).tolist()
            stored.append(StoredCodes(codec, np.array(rows, np.intp), codes))
            problems.check(image_ids, references, stored[-1])
        problems.raise_first()
        return stored

    def nbytes_per_image(self) -> int:
        """Return the characters of base64 text that one image's tokens take."""
        return 4 * ((self._codec.nbytes + 2) // 3)

    def close(self) -> None:
        """Do nothing."""

    def _codec_of(self, key: str) -> Codec | None:
        """Return the codec of a key, or None if this collection has none of that key."""
        if key not in self._codecs:
            name, _, has_codebook = key.partition("-")
            parameters = self._parameters.get(key)
            if has_codebook and parameters is None:
                return None
            shape = (self._contract.num_tokens, self._contract.token_dim)
            try:
                self._codecs[key] = codec_for(name, *shape, parameters=parameters)
            except ConfigError:
                if key == self._contract.codec_key:
                    raise
                return None
        return self._codecs[key]


def _decode_into(row: NDArray[np.uint8], text: object) -> bool:
    """Decode base64 text into `(nbytes,)` uint8; return whether it has as many bytes."""
    try:
        code = pybase64.b64decode(text, validate=True)  # type: ignore[arg-type]  # checked there
    except (ValueError, TypeError):
        return False
    if len(code) != len(row):
        return False
    row[:] = np.frombuffer(code, np.uint8)
    return True
