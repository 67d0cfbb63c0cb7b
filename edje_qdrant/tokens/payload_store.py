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
from edje_qdrant.tokens.protocol import StoredCodes, TokenReference, decoded
from edje_qdrant.tokens.references import Problems

__all__ = ["PayloadTokenStore"]


class PayloadTokenStore:
    """Turn tokens into references that carry them.

    References are `{"codec": key, "tokens": base64 text, "checksum": text}`. Nothing is kept here:
    writing the point writes its tokens.
    """

    in_payload = True

    def __init__(
        self, contract: TokenContract, parameters: Mapping[str, bytes] | None = None
    ) -> None:
        """Prepare for the contract's shape and codec.

        Args:
            contract: Of what wrote the collection.
            parameters: Key -> codebook, for every codec of the collection that has one.

        Raises:
            ConfigError: The codec is unknown, or its codebook is not there.
            TokensCorruptError: A codebook is damaged.
        """
        self._contract = contract
        self._parameters = dict(parameters or {})
        self._codecs: dict[str, Codec] = {}
        codec = self._codec_of(contract.codec_key)
        if codec is None or codec.key != contract.codec_key:
            raise ConfigError(
                f"the codebook of the codec {contract.codec_key} is not kept with the collection; "
                "restore its metadata, or ingest into a new collection"
            )
        self._codec = codec

    @property
    def codec(self) -> Codec:
        """Return what new tokens are encoded with."""
        return self._codec

    def put(self, image_ids: Sequence[str], tokens: NDArray[np.float16]) -> list[TokenReference]:
        """Encode `(n, m, d_text)` tokens; return one reference an image, in order.

        Raises:
            ConfigError: The tokens do not fit the contract, or the ids' number the tokens'.
        """
        codes = self._codec.encode(tokens)
        if len(image_ids) != len(codes):
            raise ConfigError(f"{len(image_ids)} ids for the tokens of {len(codes)} images")
        return self.put_codes(codes)

    def put_codes(self, codes: NDArray[np.uint8]) -> list[TokenReference]:
        """Turn `(n, codec.nbytes)` uint8 that `codec` made into references, in order."""
        return [
            {
                "codec": self._codec.key,
                "tokens": pybase64.b64encode_as_string(row),
                "checksum": checksum,
            }
            for row, checksum in zip(codes, checksums(codes), strict=True)
        ]

    def flush(self) -> None:
        """Do nothing: the points carry the tokens."""

    def codes(
        self, image_ids: Sequence[str], references: Sequence[TokenReference]
    ) -> list[StoredCodes]:
        """Read tokens as they are stored, each image in exactly one of the results.

        Raises:
            TokensNotFoundError: A reference carries no tokens; names the ids.
            TokensCorruptError: They are not what was written, or in a codec that is not known here;
                names the ids.
        """
        problems = Problems("the points' payload")
        groups: dict[str, tuple[Codec, list[int], list[bytes]]] = {}
        for row, (image_id, reference) in enumerate(zip(image_ids, references, strict=True)):
            text = reference.get("tokens")
            if text is None:
                problems.unknown.append(image_id)
                continue
            codec = self._codec_of(str(reference.get("codec")))
            if codec is None:
                problems.foreign.append(image_id)
                continue
            try:
                code = pybase64.b64decode(text, validate=True)
            except (ValueError, TypeError):
                code = b""
            if len(code) != codec.nbytes:
                problems.damaged.append(image_id)
                continue
            _, rows, codes = groups.setdefault(codec.key, (codec, [], []))
            rows.append(row)
            codes.append(code)
        stored: list[StoredCodes] = []
        for codec, rows, codes in groups.values():
            # A bytearray, so that the result can be written to: torch warns of arrays that cannot.
            joined = np.frombuffer(bytearray().join(codes), dtype=np.uint8)
            joined = joined.reshape(len(rows), codec.nbytes)
            problems.check(image_ids, references, rows, joined)
            stored.append(StoredCodes(codec, np.array(rows, np.intp), joined))
        problems.raise_first()
        return stored

    def get(
        self, image_ids: Sequence[str], references: Sequence[TokenReference]
    ) -> NDArray[np.float16]:
        """Read tokens back as `(n, m, d_text)`, in order; raises what `codes` does."""
        shape = (len(image_ids), self._contract.num_tokens, self._contract.token_dim)
        return decoded(self.codes(image_ids, references), shape)

    def nbytes_per_image(self) -> int:
        """Return the characters of base64 text one image's tokens take."""
        return 4 * ((self._codec.nbytes + 2) // 3)

    def close(self) -> None:
        """Do nothing."""

    def _codec_of(self, key: str) -> Codec | None:
        """Return the codec of a key, or None where this collection has none of it."""
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
