"""Location of a collection, and the metadata that its index stores."""

from __future__ import annotations

import binascii
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from edje_qdrant.collection.moved import Migration, moved_to
from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import (
    CollectionExistsError,
    ConfigError,
    EngineUnavailableError,
    StoreError,
    TokensCorruptError,
    TokensNotFoundError,
)
from edje_qdrant.files import hidden_folder, kind_of, os_errors_as_store_errors, sync_folder
from edje_qdrant.index import WORDS_KEY, TextFields
from edje_qdrant.index.folder import holds_index
from edje_qdrant.tokens.codecs import Codec
from edje_qdrant.tokens.file_store import FileTokenStore, files_of
from edje_qdrant.tokens.payload_store import PayloadTokenStore
from edje_qdrant.tokens.protocol import TokenStore

__all__ = [
    "UNKNOWN_CODECS",
    "CollectionRecord",
    "Holds",
    "TokenPlace",
    "absolute",
    "check_name",
    "describe",
    "new_record",
    "new_store",
    "publish",
    "read_contract",
    "resolve",
    "scratch_folder",
]

#: Where tokens are stored: in side files, or in the points' payload.
TokenPlace = Literal["file", "payload"]

#: What a collection's points represent.
Holds = Literal["images", "captions"]

#: Stands for the codecs before a collection's record of them began.
UNKNOWN_CODECS = "unknown"

_FORMAT = 1
_OPENED_WITH: dict[Holds, str] = {"images": "ImageCollection", "captions": "CaptionCollection"}
_NAME = re.compile(r"[A-Za-z0-9_-]{1,200}")


@dataclass(frozen=True, slots=True)
class CollectionRecord:
    """Describe which model wrote a collection and where its tokens are; stored in the index.

    Attributes:
        contract: Of the model that wrote the collection, codec included.
        tokens: Where tokens are stored.
        store_id: Identity of the token store, for side files.
        tokens_folder: Parent folder of the token store, if outside the collection's folder.
        codebooks: Key -> parameters of codecs with a codebook, for tokens in the payload; for side
            files, codebooks are in the store's folder.
        codec_history: Names of the codecs that tokens were stored with before the contract's,
            oldest first; None if a version wrote the record that did not record them.
        migration: The migration under way, if there is one.
        side_of: Name of the collection that a migration filled this side for; None if it is that
            collection.
        text_fields: Payload fields whose words are searched; None for none.
    """

    contract: TokenContract
    tokens: TokenPlace
    store_id: str | None = None
    tokens_folder: str | None = None
    codebooks: Mapping[str, bytes] = field(default_factory=dict)
    codec_history: tuple[str, ...] | None = None
    migration: Migration | None = None
    side_of: str | None = None
    text_fields: TextFields | None = None

    @classmethod
    def of(
        cls,
        store: TokenStore,
        contract: TokenContract,
        tokens_folder: str | Path | None,
        text_fields: TextFields | None = None,
    ) -> CollectionRecord:
        """Return the record of a new collection."""
        files = files_of(store)
        if files is None:
            record = cls(contract, "payload", codec_history=(), text_fields=text_fields)
            return record.with_codec(store.codec)
        outside = None if tokens_folder is None else str(absolute(tokens_folder))
        return cls(
            contract, "file", files.store_id, outside, codec_history=(), text_fields=text_fields
        )

    def with_codec(self, codec: Codec) -> CollectionRecord:
        """Return the record of the same collection with another codec for new tokens."""
        contract = self.contract.with_codec(codec.name, codec.hash)
        parameters = codec.parameters()
        if self.tokens == "file" or parameters is None:
            return replace(self, contract=contract)
        # Codebooks of earlier codecs stay: points may contain tokens encoded with them.
        codebooks = {**self.codebooks, codec.key: parameters}
        return replace(self, contract=contract, codebooks=codebooks)

    def as_metadata(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        record: dict[str, Any] = {
            **new_record(self.contract, "images"),
            "tokens": self.tokens,
            "store_id": self.store_id,
            "tokens_folder": self.tokens_folder,
            "codebooks": {
                key: binascii.b2a_base64(parameters, newline=False).decode()
                for key, parameters in self.codebooks.items()
            },
        }
        if self.codec_history is not None:
            record["codec_history"] = [*self.codec_history]
        if self.migration is not None:
            record["migration"] = self.migration.as_dict()
        if self.side_of is not None:
            record["side_of"] = self.side_of
        if self.text_fields is not None:
            record[WORDS_KEY] = self.text_fields.as_metadata()
        return record

    @classmethod
    def read(cls, metadata: Mapping[str, Any], what: str) -> CollectionRecord:
        """Read a collection's record; messages call the collection `what`.

        Raises:
            StoreError: It is missing, damaged, or of another version.
        """
        contract = read_contract(metadata, what, "images")
        try:
            tokens, store_id = metadata["tokens"], metadata["store_id"]
            tokens_folder = metadata["tokens_folder"]
            codebooks = {
                str(key): binascii.a2b_base64(text) for key, text in metadata["codebooks"].items()
            }
            earlier = metadata.get("codec_history")
            history = None if earlier is None else tuple(str(name) for name in earlier)
            under_way = metadata.get("migration")
            migration = None if under_way is None else Migration.from_dict(under_way)
            side_of = metadata.get("side_of")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(_unreadable(what)) from error
        if tokens not in ("file", "payload"):
            raise StoreError(_unreadable(what))
        fields = TextFields.read(metadata)
        return cls(
            contract,
            tokens,
            store_id,
            tokens_folder,
            codebooks,
            history,
            migration,
            side_of,
            fields,
        )

    def open_store(
        self, where: Any, name: str, moved_to: str | Path | None, *, for_repair: bool = False
    ) -> TokenStore:
        """Open the token store, and check that it belongs to this collection.

        Args:
            where: The collection's location, resolved.
            name: The collection's name.
            moved_to: Parent folder of the token store, if it differs from the recorded one.
            for_repair: Rebuild a lost or damaged manifest, and check side files only when they are
                read.

        Raises:
            ContractMismatchError: The store was written by another model than the index.
            TokensNotFoundError: The store is missing.
            TokensCorruptError: The store is damaged, or belongs to another collection.
            StoreError: The store cannot be read.
        """
        if self.tokens == "payload":
            return PayloadTokenStore(self.contract, self.codebooks)
        around = self.tokens_folder if moved_to is None else moved_to
        inside = Path(describe(where)) / name / "tokens"
        folder = inside if around is None else absolute(around) / name
        try:
            store = FileTokenStore.open(folder, store_id=self.store_id, lenient=for_repair)
        except (TokensNotFoundError, TokensCorruptError):
            if not for_repair:
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
    """Return the metadata of every collection: format, contract, and what it holds."""
    record: dict[str, Any] = {"format": _FORMAT, "contract": contract.as_dict()}
    # Image collections have no such key, as they are older than it.
    return record if holds == "images" else {**record, "holds": holds}


def read_contract(metadata: Mapping[str, Any], what: str, holds: Holds) -> TokenContract:
    """Read the contract of a collection; messages call the collection `what`.

    Raises:
        StoreError: The collection holds something else, or its metadata is missing, damaged, or of
            another version.
    """
    try:
        version, found = metadata["format"], metadata.get("holds", "images")
        if found != holds and found in _OPENED_WITH:
            raise StoreError(
                f"collection {what} holds {found}, not {holds}; open it with "
                f"{_OPENED_WITH[found]}, or choose another name"
            )
        if version != _FORMAT and moved_to(metadata) is None:
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
        f"collection {what} does not say what wrote it; it is damaged or was made by another "
        "program: restore it, or ingest into a new collection"
    )


def resolve(location: Any) -> Any:
    """Return a `Path` for a folder, and any other location unchanged.

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
    """Return the absolute path of a folder, with `~` expanded."""
    return Path(folder).expanduser().absolute()


def check_name(name: str) -> None:
    """Check a collection's name.

    Raises:
        ConfigError: It contains other characters than letters, digits, `-` and `_`, or is too long.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"collection name {name!r} cannot be used; use letters, digits, '-' and '_', "
            "200 at most"
        )


@contextmanager
def scratch_folder(final: Path) -> Iterator[Path]:
    """Create a hidden folder near `final`, for `publish`; remove what is left in it at the end.

    Raises:
        CollectionExistsError: There is a collection at `final`.
        StoreError: There is something else at `final`, or the folder cannot be created.
    """
    with os_errors_as_store_errors("create a collection at", final):
        _require_free(final)
        with hidden_folder(final) as scratch:
            yield scratch


def publish(scratch: Path, final: Path) -> None:
    """Rename a complete collection to its final folder: from this moment on it exists.

    Raises:
        CollectionExistsError: Another process was quicker.
        StoreError: It cannot be renamed.
    """
    with os_errors_as_store_errors("create a collection at", final):
        try:
            scratch.rename(final)
        except OSError:
            _require_free(final)
            raise
        sync_folder(final.parent)


def _require_free(final: Path) -> None:
    if holds_index(final):
        raise CollectionExistsError(str(final.parent), final.name)
    if kind_of(final) is not None:
        raise StoreError(f"there is something at {final} already; choose another name")


@contextmanager
def new_store(folder: Path | None, contract: TokenContract, codec: Codec) -> Iterator[TokenStore]:
    """Create a store, in the payload if `folder` is None; remove it if the block fails.

    It is not removed when the connection to a server was lost: the server may have created the
    collection that refers to it.
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
