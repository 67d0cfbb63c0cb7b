"""Contract of a collection: identifies the model that wrote it; checked at every open."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any

from edje_qdrant.errors import ContractMismatchError, StoreError

__all__ = ["TokenContract"]

# Not compared: they say where the model came from and when.
_INFORMATIVE = frozenset({"model", "library_version"})

# Each codec of a collection decodes its own tokens, so a point's model is named without it.
_OF_CODEC = frozenset({"codec", "codec_hash"})


@dataclass(frozen=True, slots=True)
class TokenContract:
    """Hold all properties that must be equal for tokens and scores to be comparable.

    Attributes:
        encoder: Name of the stage-1 encoder.
        encoder_revision: Hash of the encoder's weights.
        preprocessing: Hash of the image processor's settings.
        embedding_dim: Width of the embedding.
        adapter_hash: Hash of the adapter's weights.
        num_tokens: Number of tokens per image.
        token_dim: Width of a token.
        dtype: Dtype of tokens before encoding.
        codec: Name of the codec of stored tokens.
        codec_hash: Hash of the codec's codebook, if it has one.
        model: Name, folder or hub id of the model (not compared).
        library_version: Package version that wrote the collection (not compared).
    """

    encoder: str
    encoder_revision: str
    preprocessing: str
    embedding_dim: int
    adapter_hash: str
    num_tokens: int
    token_dim: int
    dtype: str = "float16"
    codec: str = "float16"
    codec_hash: str = ""
    model: str | None = None
    library_version: str = ""

    @property
    def codec_key(self) -> str:
        """Return the key of the codec: its name, and digits of its codebook's hash."""
        return f"{self.codec}-{self.codec_hash[:8]}" if self.codec_hash else self.codec

    @property
    def model_key(self) -> str:
        """Return 8 hexadecimal digits of a hash of all that is compared but the codec.

        Each point says by it which model wrote it.
        """
        return _model_key(self)

    def with_codec(self, codec: str, codec_hash: str = "") -> TokenContract:
        """Return the same contract for tokens stored with another codec."""
        return replace(self, codec=codec, codec_hash=codec_hash)

    def as_dict(self) -> dict[str, Any]:
        """Return the contract as a JSON object."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TokenContract:
        """Parse a contract; unknown keys, of later versions, are refused.

        Raises:
            StoreError: A field is missing, unknown or of the wrong type.
        """
        known = {f.name: f for f in fields(cls)}
        unknown = sorted(set(data) - set(known))
        optional = {"dtype", "codec", "codec_hash", "model", "library_version"}
        missing = sorted(set(known) - set(data) - optional)
        wrong = [
            k
            for k in ("embedding_dim", "num_tokens", "token_dim")
            if k in data and (not isinstance(data[k], int) or data[k] < 1)
        ]
        if unknown or missing or wrong:
            raise StoreError(
                f"not a contract this version can read (missing {missing}, unknown {unknown}, "
                f"not a positive number {wrong}); the collection was written by another version "
                "or is damaged"
            )
        return cls(**data)

    def require_match(self, found: TokenContract, *, where: str) -> None:
        """Check that `found`, read at `where`, matches this contract.

        Raises:
            ContractMismatchError: It does not; names each field that differs, with both values.
        """
        ours, theirs = self.as_dict(), found.as_dict()
        differing = [k for k in ours if k not in _INFORMATIVE and ours[k] != theirs[k]]
        if not differing:
            return
        expected = {k: ours[k] for k in differing}
        other = {k: theirs[k] for k in differing}
        detail = "; ".join(f"{k}: expected {expected[k]!r}, found {other[k]!r}" for k in differing)
        raise ContractMismatchError(
            f"{where} was written by another model or with other settings ({detail}); "
            f"open it with the model that wrote it ({found.model or 'unnamed'}), "
            "or ingest into a new collection",
            expected,
            other,
        )

    def require_same_model(self, found: TokenContract, *, where: str) -> None:
        """Check that `found`, read at `where`, matches this contract, whatever the codec.

        Raises:
            ContractMismatchError: It does not; names each field that differs, with both values.
        """
        self.with_codec(found.codec, found.codec_hash).require_match(found, where=where)


@lru_cache(maxsize=64)
def _model_key(contract: TokenContract) -> str:
    # Values at their defaults are left out, so that a field added later does not change the key.
    named = {
        each.name: getattr(contract, each.name)
        for each in fields(contract)
        if each.name not in _INFORMATIVE | _OF_CODEC
        and getattr(contract, each.name) != each.default
    }
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:8]
