"""Fitted codecs in files of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import ConfigError, ContractMismatchError, StoreError, TokensCorruptError
from edje_qdrant.files import os_errors_as_store_errors, write_atomically
from edje_qdrant.tokens.codebook_bytes import unpack
from edje_qdrant.tokens.codecs import Codec, ProductCodec, codec_for

__all__ = ["read_codec", "write_codec"]


def write_codec(codec: Codec, path: str | Path, *, contract: TokenContract | None = None) -> None:
    """Write a fitted codec to a safetensors file, which replaces one that is there.

    The file holds what `Codec.parameters` returns.

    Args:
        codec: One with a codebook.
        path: The file, in a folder that exists.
        contract: Of the model whose tokens the codec was fitted to; its adapter's hash is kept.

    Raises:
        ConfigError: The codec has no parameters, or none yet.
        StoreError: The file cannot be written.
    """
    if contract is not None and isinstance(codec, ProductCodec):
        codec = replace(codec, adapter_hash=contract.adapter_hash)
    data = codec.parameters()
    if data is None:
        advice = "its name is all it takes" if codec.fitted else "fit it to tokens first"
        raise ConfigError(f"the codec {codec.name} has no parameters to write; {advice}")
    path = Path(path)
    with os_errors_as_store_errors("write the codec", path):
        write_atomically(path, data)


def read_codec(
    path: str | Path, num_tokens: int, token_dim: int, *, adapter_hash: str | None = None
) -> Codec:
    """Read a fitted codec for `(num_tokens, token_dim)` tokens.

    Args:
        path: What `write_codec` wrote.
        num_tokens: Tokens an image, `m`.
        token_dim: Width of a token, `d_text`.
        adapter_hash: Of the adapter that makes the tokens; a codec fitted to another's is refused.
            One that does not say what it was fitted to is not.

    Raises:
        ConfigError: There is no such file, or it is for tokens of another width.
        TokensCorruptError: It is damaged, cut off or something else.
        ContractMismatchError: It was fitted to another adapter's tokens.
        StoreError: It cannot be read.
    """
    path = Path(path)
    try:
        with os_errors_as_store_errors("read the codec", path):
            data = path.read_bytes()
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise ConfigError(
                f"there is no codec at {path}; make one with `edje-qdrant fit-codec`"
            ) from error
        raise
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
