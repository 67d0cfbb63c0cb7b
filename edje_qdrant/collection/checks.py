"""Checks of points and tokens before a collection writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.checks import check_arrays, check_kind, check_list
from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import ConfigError
from edje_qdrant.index import TOKENS_KEY
from edje_qdrant.index import validate as checks
from edje_qdrant.tokens.codec_file import read_codec
from edje_qdrant.tokens.codecs import Codec, codec_for
from edje_qdrant.types import Payload, Point

__all__ = ["check_points", "check_reserved", "check_tokens", "fitted_codec", "named_codec"]


def fitted_codec(contract: TokenContract, codec: str | Codec) -> Codec:
    """Return the codec for a collection of this contract, given a codec, its name or its file.

    Raises:
        ConfigError: The name is unknown, the file cannot be used, the codec is not fitted or is
            for tokens of another shape, or the contract's tokens cannot be stored.
    """
    check_kind("contract", contract, TokenContract, "a TokenContract, such as model.contract()")
    if not isinstance(codec, str) and not hasattr(codec, "num_tokens"):
        raise ConfigError(f"codec is a {type(codec).__name__}; give a codec, or the name of one")
    if contract.dtype != "float16":
        raise ConfigError(
            f"the contract's dtype is {contract.dtype!r}; collections store float16 tokens"
        )
    if isinstance(codec, str):
        codec = named_codec(codec, contract)
    if not isinstance(codec, Codec):
        raise ConfigError(f"codec is a {type(codec).__name__}; give a codec or its name")
    if (codec.num_tokens, codec.token_dim) != (contract.num_tokens, contract.token_dim):
        raise ConfigError(
            f"the codec {codec.name} is for {codec.num_tokens} x {codec.token_dim} tokens, the "
            f"contract's are {contract.num_tokens} x {contract.token_dim}"
        )
    if not codec.fitted:
        raise ConfigError(
            f"the codec {codec.name} has a codebook, which has to be fitted to tokens first: pass "
            f"codec_for({codec.name!r}, ...).fit(tokens), or use `edje-qdrant ingest --codec "
            f"{codec.name}`, which fits one to a sample of the source"
        )
    return codec


def named_codec(name: str, contract: TokenContract) -> Codec:
    """Return the codec with this name, or read it from a `.safetensors` file of `fit-codec`.

    Raises:
        ConfigError: The name is unknown, or the file is missing or of another model.
    """
    shape = (contract.num_tokens, contract.token_dim)
    if name.endswith(".safetensors"):
        return read_codec(Path(name), *shape, adapter_hash=contract.adapter_hash)
    return codec_for(name, *shape)


def check_points(
    contract: TokenContract,
    image_ids: Sequence[str],
    embeddings: NDArray[np.float32],
    payloads: Sequence[Payload],
    *,
    of: str = "image",
) -> None:
    """Raise an error for points that the index would refuse later.

    Args:
        contract: The collection's contract.
        image_ids: `n` UUID strings.
        embeddings: `(n, d)` float32.
        payloads: `n` JSON objects.
        of: What an embedding represents, for messages.

    Raises:
        ConfigError: Numbers, shapes or dtypes do not fit the contract, an embedding is not finite,
            or an id or a payload cannot be stored.
    """
    check_list("image_ids", image_ids)
    check_arrays("embeddings", embeddings)
    check_list("payloads", payloads)
    for payload in payloads:
        check_kind("a payload", payload, Mapping, "a dict")
    shape = (len(image_ids), contract.embedding_dim)
    _check_numbers("embeddings", image_ids, embeddings, shape, np.dtype(np.float32), of)
    if len(payloads) != len(image_ids):
        raise ConfigError(f"{len(payloads)} payloads for {len(image_ids)} ids; give one for each")
    check_reserved(dict(zip(image_ids, payloads, strict=True)))
    checks.check_points(
        [
            Point(image_id, embedding, payload)
            for image_id, embedding, payload in zip(image_ids, embeddings, payloads, strict=True)
        ],
        contract.embedding_dim,
    )


def check_reserved(payloads: Mapping[str, Payload]) -> None:
    """Raise an error for payloads with the reserved key.

    Raises:
        ConfigError: A payload contains it; names the image.
    """
    check_kind("payloads", payloads, Mapping, "a dict of id and fields")
    for image_id, payload in payloads.items():
        check_kind("a payload", payload, Mapping, "a dict")
        if TOKENS_KEY in payload:
            raise ConfigError(
                f"the payload of {image_id} has the key {TOKENS_KEY!r}, which is reserved; "
                "rename it"
            )


def check_tokens(
    contract: TokenContract, image_ids: Sequence[str], tokens: NDArray[np.float16]
) -> None:
    """Raise an error for invalid tokens, whether or not the codec could store them.

    Raises:
        ConfigError: Shape or dtype do not fit the contract, or a token is not finite.
    """
    shape = (len(image_ids), contract.num_tokens, contract.token_dim)
    _check_numbers("tokens", image_ids, tokens, shape, np.dtype(np.float16), "image")


def _check_numbers(
    what: str,
    image_ids: Sequence[str],
    array: NDArray[Any],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    of: str,
) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise ConfigError(
            f"{what} must be {dtype} of shape {shape} for {len(image_ids)} ids, as the "
            f"collection's contract says, not {array.dtype} of shape {array.shape}"
        )
    bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1) if len(array) else np.array([])
    if bad.any():
        raise ConfigError(
            f"{what} of {of} {image_ids[int(bad.argmax())]} hold NaN or infinity; "
            "check the encoder's precision and its input"
        )
