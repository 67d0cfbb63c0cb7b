"""Files of fitted codecs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import ConfigError, ContractMismatchError, TokensCorruptError
from edje_qdrant.files import os_errors_as_store_errors, read_if_exists, write_atomically
from edje_qdrant.tokens.codebook_bytes import unpack
from edje_qdrant.tokens.codecs import Codec, ProductCodec, codec_for

__all__ = ["read_codec", "write_codec"]


def write_codec(codec: Codec, path: str | Path, *, contract: TokenContract | None = None) -> None:
    """Write a fitted codec to a safetensors file, and replace an existing file.

    The file contains the bytes that `Codec.parameters` returns.

    Args:
        codec: A codec with a codebook.
        path: The file, in an existing folder.
        contract: Of the model whose tokens the codec was fitted to; its adapter's hash is stored.

    Raises:
        ConfigError: The codec has no parameters, or is not fitted.
        StoreError: The file cannot be written.
    """
    if contract is not None and isinstance(codec, ProductCodec):
        codec = replace(codec, adapter_hash=contract.adapter_hash)
    data = codec.parameters()
    if data is None:
        advice = "its name is enough" if codec.fitted else "fit it to tokens first"
        raise ConfigError(f"the codec {codec.name} has no parameters to write; {advice}")
    path = Path(path)
    with os_errors_as_store_errors("write the codec", path):
        write_atomically(path, data)


def read_codec(
    path: str | Path, num_tokens: int, token_dim: int, *, adapter_hash: str | None = None
) -> Codec:
    """Read a fitted codec for `(num_tokens, token_dim)` tokens.

    Args:
        path: File that `write_codec` wrote.
        num_tokens: Number of tokens per image, `m`.
        token_dim: Width of a token, `d_text`.
        adapter_hash: Of the adapter that computes the tokens; a codec that was fitted to tokens of
            another adapter is refused, one without a stored hash is accepted.

    Raises:
        ConfigError: The file does not exist, or is for tokens of another width.
        TokensCorruptError: The file is damaged, truncated or of another kind.
        ContractMismatchError: The codec was fitted to tokens of another adapter.
        StoreError: The file cannot be read.
    """
    path = Path(path)
    data = read_if_exists(path, "read the codec")
    if data is None:
        raise ConfigError(f"there is no codec at {path}; make one with `edje-qdrant fit-codec`")
    found = unpack(data, where=str(path))
    codec = codec_for(found.name, num_tokens, token_dim)
    if not isinstance(codec, ProductCodec):
        raise TokensCorruptError(f"{path} holds a codebook for {codec.name}, which has none")
    codec = codec.with_parameters(data, where=str(path))
    if adapter_hash is not None and codec.adapter_hash not in ("", adapter_hash):
        raise ContractMismatchError(
            f"the codec at {path} was fitted to tokens of another adapter (expected "
            f"{adapter_hash}, found {codec.adapter_hash}); fit one to this model's with "
            "`edje-qdrant fit-codec`",
            {"adapter_hash": adapter_hash},
            {"adapter_hash": codec.adapter_hash},
        )
    return codec
