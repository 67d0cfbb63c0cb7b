"""Where a collection lies, and what its index keeps about it."""

from __future__ import annotations

import binascii
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import (
    ConfigError,
    EngineUnavailableError,
    StoreError,
    TokensCorruptError,
    TokensNotFoundError,
)
from edje_qdrant.files import os_errors_as_store_errors
from edje_qdrant.tokens.codecs import Codec
from edje_qdrant.tokens.file_store import FileTokenStore
from edje_qdrant.tokens.payload_store import PayloadTokenStore
from edje_qdrant.tokens.protocol import TokenStore

__all__ = [
    "CollectionRecord",
    "Holds",
    "TokenPlace",
    "absolute",
    "check_name",
    "describe",
    "new_record",
    "new_store",
    "read_contract",
    "resolve",
    "scratch_folder",
]

#: Where tokens live: in a side file, or in the points' own payload.
TokenPlace = Literal["file", "payload"]

#: What a collection's points stand for.
Holds = Literal["images", "captions"]

_FORMAT = 1
_OPENED_WITH: dict[Holds, str] = {"images": "ImageCollection", "captions": "CaptionCollection"}
_NAME = re.compile(r"[A-Za-z0-9_-]{1,200}")


@dataclass(frozen=True, slots=True)
class CollectionRecord:
    """Say what wrote a collection and where its tokens are; the index's metadata keeps it.

    Attributes:
        contract: Of the model that wrote the collection, codec included.
        tokens: Where tokens live.
        store_id: The side file's identity, where there is one.
        tokens_folder: The folder around the side file's, if it is outside the collection's.
        codebooks: Key -> parameters of codecs that have some, where the payload keeps the tokens;
            side files keep them beside themselves.
    """

    contract: TokenContract
    tokens: TokenPlace
    store_id: str | None = None
    tokens_folder: str | None = None
    codebooks: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        store: TokenStore,
        contract: TokenContract,
        tokens_folder: str | Path | None,
    ) -> CollectionRecord:
        """Describe a collection that is being made."""
        if store.files is None:
            return cls(contract, "payload").with_codec(store.codec)
        outside = None if tokens_folder is None else str(absolute(tokens_folder))
        return cls(contract, "file", store.files.store_id, outside)

    def with_codec(self, codec: Codec) -> CollectionRecord:
        """Return the record of the same collection, whose new tokens another codec encodes."""
        contract = self.contract.with_codec(codec.name, codec.hash)
        parameters = codec.parameters()
        if self.tokens == "file" or parameters is None:
            return replace(self, contract=contract)
        # Those of earlier codecs stay: points may carry tokens that they encoded.
        codebooks = {**self.codebooks, codec.key: parameters}
        return replace(self, contract=contract, codebooks=codebooks)

    def as_metadata(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        return {
            **new_record(self.contract, "images"),
            "tokens": self.tokens,
            "store_id": self.store_id,
            "tokens_folder": self.tokens_folder,
            "codebooks": {
                key: binascii.b2a_base64(parameters, newline=False).decode()
                for key, parameters in self.codebooks.items()
            },
        }

    @classmethod
    def read(cls, metadata: Mapping[str, Any], what: str) -> CollectionRecord:
        """Read the record of the collection called `what` in messages.

        Raises:
            StoreError: It is not there, damaged, or of another version.
        """
        contract = read_contract(metadata, what, "images")
        try:
            tokens, store_id = metadata["tokens"], metadata["store_id"]
            tokens_folder = metadata["tokens_folder"]
            codebooks = {
                str(key): binascii.a2b_base64(text) for key, text in metadata["codebooks"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(_unreadable(what)) from error
        if tokens not in ("file", "payload"):
            raise StoreError(_unreadable(what))
        return cls(contract, tokens, store_id, tokens_folder, codebooks)

    def open_store(
        self, where: Any, name: str, moved_to: str | Path | None, *, mend: bool = False
    ) -> TokenStore:
        """Open the collection's token store, and check that it is this collection's.

        Args:
            where: The collection's location, resolved.
            name: The collection's name.
            moved_to: The folder around the side file's now, if not the one that was kept.
            mend: Write a lost or damaged manifest anew, and leave damaged side files to be noticed
                when they are read.

        Raises:
            ContractMismatchError: The side file was written by another model than the index.
            TokensNotFoundError: It is not there.
            TokensCorruptError: It is damaged, or another collection's.
            StoreError: It cannot be read.
        """
        if self.tokens == "payload":
            return PayloadTokenStore(self.contract, self.codebooks)
        around = self.tokens_folder if moved_to is None else moved_to
        inside = Path(describe(where)) / name / "tokens"
        folder = inside if around is None else absolute(around) / name
        try:
            store = FileTokenStore.open(folder, store_id=self.store_id, lenient=mend)
        except (TokensNotFoundError, TokensCorruptError):
            if not mend:
                raise
            FileTokenStore.rebuild(folder, self.contract, self.store_id or "")
            store = FileTokenStore.open(folder, store_id=self.store_id, lenient=True)
        try:
            # After a crash while the codec was changed, the index may name the earlier codec.
            self.contract.require_same_model(store.contract, where=f"the token store at {folder}")
        except BaseException:
            store.close()
            raise
        return store


def new_record(contract: TokenContract, holds: Holds) -> dict[str, Any]:
    """Return what every collection's metadata says: its format, what wrote it, what it holds."""
    record: dict[str, Any] = {"format": _FORMAT, "contract": contract.as_dict()}
    # Of images nothing is said: such collections are older than the word.
    return record if holds == "images" else {**record, "holds": holds}


def read_contract(metadata: Mapping[str, Any], what: str, holds: Holds) -> TokenContract:
    """Read which model wrote the collection called `what` in messages.

    Raises:
        StoreError: It holds something else, or its metadata is not there, damaged, or of another
            version.
    """
    try:
        version, found = metadata["format"], metadata.get("holds", "images")
        if found != holds and found in _OPENED_WITH:
            raise StoreError(
                f"collection {what} holds {found}, not {holds}; open it with "
                f"{_OPENED_WITH[found]}, or choose another name"
            )
        if version != _FORMAT:
            raise StoreError(
                f"collection {what} has format {version!r}, this version reads {_FORMAT}; "
                "use the version of the package that wrote it"
            )
        if found != holds:
            raise StoreError(_unreadable(what))
        return TokenContract.from_dict(metadata["contract"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(_unreadable(what)) from error


def _unreadable(what: str) -> str:
    return (
        f"collection {what} does not say what wrote it; it is damaged or was made by something "
        "else: restore it, or ingest into a new collection"
    )


def resolve(location: Any) -> Any:
    """Return a `Path` for a folder; what is for a server's client is returned as it is.

    Raises:
        ConfigError: The location is empty.
    """
    if isinstance(location, str) and (location == ":memory:" or "://" in location):
        return location
    if isinstance(location, str | os.PathLike):
        if not os.fspath(location):
            raise ConfigError('location is empty; give a folder, "http://...", or ":memory:"')
        return Path(location).expanduser()
    return location


def describe(where: Any) -> str:
    """Return a resolved location as text for messages."""
    return str(where) if isinstance(where, str | Path) else type(where).__name__


def absolute(folder: str | Path) -> Path:
    """Return a folder's path from the root, `~` filled in."""
    return Path(folder).expanduser().absolute()


def check_name(name: str) -> None:
    """Check a collection's name.

    Raises:
        ConfigError: It has other characters than letters, digits, `-` and `_`, or too many.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"collection name {name!r} cannot be used; take letters, digits, '-' and '_', "
            "200 at most"
        )


@contextmanager
def scratch_folder(final: Path) -> Iterator[Path]:
    """Make a hidden folder near `final`, to be renamed to it; removed if that does not happen.

    Raises:
        StoreError: There is something at `final`, or the folder cannot be made.
    """
    with os_errors_as_store_errors("create a collection at", final):
        if final.exists():
            raise StoreError(
                f"there is something at {final} already; open that collection, "
                "or choose another name"
            )
        # One level down, so that what a crash leaves behind does not look like a collection.
        around = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.new")
        scratch = around / "collection"
        scratch.mkdir(parents=True)
        try:
            yield scratch
        finally:
            shutil.rmtree(around, ignore_errors=True)


@contextmanager
def new_store(folder: Path | None, contract: TokenContract, codec: Codec) -> Iterator[TokenStore]:
    """Make a store, in the payload where there is no folder; unmake it if what follows fails.

    It stays where a server went away, which may have made the collection that refers to it.
    """
    if folder is None:
        parameters = codec.parameters()
        yield PayloadTokenStore(contract, None if parameters is None else {codec.key: parameters})
        return
    store = FileTokenStore.create(folder, contract, codec)
    try:
        yield store
    except EngineUnavailableError:
        store.close()
        raise
    except BaseException:
        store.remove()
        raise
