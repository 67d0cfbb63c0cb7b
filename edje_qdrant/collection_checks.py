"""Checks on what is written to a collection, before anything is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import ConfigError
from edje_qdrant.index import TOKENS_KEY
from edje_qdrant.index.checks import check_points
from edje_qdrant.tokens.codecs import Codec, codec_for
from edje_qdrant.types import ImageEncoding, Payload, Point

__all__ = ["check_pictures", "fitted_codec"]


def fitted_codec(contract: TokenContract, codec: str | Codec) -> Codec:
    """Return the codec that a collection of this contract is to use.

    Raises:
        ConfigError: There is none of that name, it has to be fitted first, or the contract's tokens
            cannot be kept.
    """
    if contract.dtype != "float16":
        raise ConfigError(
            f"the contract's dtype is {contract.dtype!r}; collections keep float16 tokens"
        )
    if isinstance(codec, str):
        codec = codec_for(codec, contract.num_tokens, contract.token_dim)
    if not codec.fitted:
        raise ConfigError(
            f"the codec {codec.name} has a codebook, which has to be fitted to tokens first: pass "
            f"codec_for({codec.name!r}, ...).fit(tokens), or use `edje-qdrant ingest --codec "
            f"{codec.name}`, which fits one to a sample of the source"
        )
    return codec


def check_pictures(
    contract: TokenContract,
    image_ids: Sequence[str],
    encoding: ImageEncoding,
    payloads: Sequence[Payload],
) -> None:
    """Refuse what the store or the index would refuse later.

    Raises:
        ConfigError: Numbers, shapes or dtypes do not fit the contract, an embedding or a token is
            not finite, or an id or a payload cannot be stored.
    """
    n = len(image_ids)
    expected = {
        "embeddings": ((n, contract.embedding_dim), np.dtype(np.float32)),
        "tokens": ((n, contract.num_tokens, contract.token_dim), np.dtype(np.float16)),
    }
    for what, (shape, dtype) in expected.items():
        array: NDArray[Any] = getattr(encoding, what)
        if array.shape != shape or array.dtype != dtype:
            raise ConfigError(
                f"{what} must be {dtype} of shape {shape} for {n} ids, as the collection's "
                f"contract says, not {array.dtype} of shape {array.shape}"
            )
        bad = ~np.isfinite(array).reshape(n, -1).all(axis=1) if n else np.zeros(0, bool)
        if bad.any():
            first = int(bad.argmax())
            raise ConfigError(
                f"{what} of picture {image_ids[first]} hold NaN or infinity; "
                "check the encoder's precision and its input"
            )
    if len(payloads) != n:
        raise ConfigError(f"{len(payloads)} payloads for {n} ids; give one for each")
    for image_id, payload in zip(image_ids, payloads, strict=True):
        if TOKENS_KEY in payload:
            raise ConfigError(
                f"the payload of {image_id} has the key {TOKENS_KEY!r}, which is reserved; "
                "rename it"
            )
    check_points(
        [
            Point(image_id, embedding, payload)
            for image_id, embedding, payload in zip(
                image_ids, encoding.embeddings, payloads, strict=True
            )
        ],
        contract.embedding_dim,
    )
