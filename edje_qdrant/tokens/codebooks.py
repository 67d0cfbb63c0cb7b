"""Codebooks in a folder of side files: `codec-KEY.safetensors`, one for each codec that has one."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import ConfigError, TokensCorruptError, TokensNotFoundError
from edje_qdrant.tokens.codec_file import read_codec, write_codec
from edje_qdrant.tokens.codecs import Codec, codec_for

__all__ = ["drop_codebooks", "keep_codebook", "stored_codec"]


def stored_codec(folder: Path, contract: TokenContract, key: str) -> Codec:
    """Return the codec of a key, its codebook read from the folder where it has one.

    Raises:
        TokensNotFoundError: The codebook is gone.
        TokensCorruptError: It is damaged or another one, or there is no codec of that name.
        StoreError: It cannot be read.
    """
    name, _, has_codebook = key.partition("-")
    shape = (contract.num_tokens, contract.token_dim)
    if not has_codebook:
        try:
            return codec_for(name, *shape)
        except ConfigError as error:
            raise TokensCorruptError(
                f"tokens in {folder} are said to be in an {error}; a side file is damaged, or a "
                "later version wrote it: restore it from a copy, or use that version"
            ) from error
    path = _path(folder, key)
    if not path.exists():
        raise TokensNotFoundError(
            f"the codebook {path} is gone, without which nothing of {key} can be decoded; "
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
    """Write a codec's codebook to the folder, where it has one.

    Raises:
        StoreError: It cannot be written.
    """
    if codec.parameters() is not None:
        write_codec(codec, _path(folder, codec.key), contract=contract)


def drop_codebooks(folder: Path, needed: Collection[str] = ()) -> None:
    """Delete the codebooks but those of the keys that are needed.

    Raises:
        OSError: One cannot be deleted.
    """
    for path in folder.glob("codec-*.safetensors"):
        if path.stem.removeprefix("codec-") not in needed:
            path.unlink(missing_ok=True)


def _path(folder: Path, key: str) -> Path:
    return folder / f"codec-{key}.safetensors"
