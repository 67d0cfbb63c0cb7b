"""Codebooks in a folder of side files: one `codec-KEY.safetensors` for each fitted codec."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import ConfigError, TokensCorruptError, TokensNotFoundError
from edje_qdrant.files import kind_of
from edje_qdrant.tokens.codec_file import read_codec, write_codec
from edje_qdrant.tokens.codecs import Codec, codec_for

__all__ = ["drop_codebooks", "keep_codebook", "stored_codec"]


def stored_codec(folder: Path, contract: TokenContract, key: str) -> Codec:
    """Return the codec of a key; read its codebook, if it has one, from the folder.

    Raises:
        TokensNotFoundError: The codebook is missing.
        TokensCorruptError: The codebook is damaged or another codec's, or the name is unknown.
        StoreError: The codebook cannot be read.
    """
    name, _, has_codebook = key.partition("-")
    shape = (contract.num_tokens, contract.token_dim)
    if not has_codebook:
        try:
            return codec_for(name, *shape)
        except ConfigError as error:
            raise TokensCorruptError(
                f"tokens in {folder} are marked as encoded with an {error}; a side file is "
                "damaged, or a later version wrote it: restore it from a copy, or use that version"
            ) from error
    path = _path(folder, key)
    if kind_of(path) is None:
        raise TokensNotFoundError(
            f"the codebook {path} is gone, and tokens of {key} cannot be decoded without it; "
            "restore it from a copy"
        )
    try:
        codec = read_codec(path, *shape)
    except ConfigError as error:
        raise TokensCorruptError(f"{error}; restore {path} from a copy") from error
    if codec.key != key:
        raise TokensCorruptError(f"{path} holds {codec.key}; restore it from a copy")
    return codec


def keep_codebook(folder: Path, codec: Codec, contract: TokenContract) -> None:
    """Write the codebook of a codec to the folder, if it has one.

    Raises:
        StoreError: The codebook cannot be written.
    """
    if codec.parameters() is not None:
        write_codec(codec, _path(folder, codec.key), contract=contract)


def drop_codebooks(folder: Path, needed: Collection[str] = ()) -> None:
    """Delete all codebooks except those of the needed keys, and what a killed write of one left.

    Raises:
        OSError: A codebook cannot be deleted.
    """
    for path in folder.glob("codec-*.safetensors"):
        if path.stem.removeprefix("codec-") not in needed:
            path.unlink(missing_ok=True)
    for path in folder.glob("codec-*.safetensors.new"):
        path.unlink(missing_ok=True)


def _path(folder: Path, key: str) -> Path:
    return folder / f"codec-{key}.safetensors"
