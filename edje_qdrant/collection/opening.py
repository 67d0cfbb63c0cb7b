"""Creation and opening of a collection's parts: index, token store, and the record of both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edje_qdrant.collection.checks import fitted_codec
from edje_qdrant.collection.metadata import (
    CollectionRecord,
    TokenPlace,
    absolute,
    check_name,
    describe,
    new_store,
    publish,
    resolve,
    scratch_folder,
)
from edje_qdrant.collection.moved import moved_to
from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import ConfigError, StoreError
from edje_qdrant.index import (
    Engine,
    QdrantOptions,
    QdrantSettings,
    TextFields,
    VectorIndex,
    create_embedded,
    create_on_server,
    open_embedded,
    open_on_server,
)
from edje_qdrant.index.engines import check_engine
from edje_qdrant.index.folder import read_metadata
from edje_qdrant.index.qdrant.connection import Connection
from edje_qdrant.index.qdrant.metadata import require_absent
from edje_qdrant.index.qdrant.settings import check_settings
from edje_qdrant.tokens.codecs import Codec
from edje_qdrant.tokens.protocol import TokenStore

__all__ = ["Origin", "Parts", "create_parts", "open_index", "open_parts", "open_side"]

# Where the sides of a collection are that migrations filled, in the collection's folder.
_SIDES = "sides"


@dataclass(frozen=True, slots=True)
class Origin:
    """Say how a collection was opened, to open or create sides of it.

    Attributes:
        where: The location, resolved.
        sides: Names of the sides from the collection with the given name, an alias resolved, to the
            one that is open. There is more than one after a migration.
        options: How to reach the server.
        tokens_folder: Where side files have moved to, if that was given.
    """

    where: Any
    sides: tuple[str, ...]
    options: QdrantOptions
    tokens_folder: str | Path | None = None

    @property
    def front(self) -> str:
        """Return the name of the collection that can be opened by name."""
        return self.sides[0]

    def place_of(self, side: str) -> tuple[Any, str]:
        """Return the location and the name of a side."""
        if isinstance(self.where, Path) and side != self.front:
            return self.where / self.front / _SIDES, side
        return self.where, side


@dataclass(frozen=True, slots=True)
class Parts:
    """Hold the open parts of a collection."""

    index: VectorIndex
    store: TokenStore
    record: CollectionRecord
    location: str
    origin: Origin


def create_parts(
    location: Any,
    name: str,
    contract: TokenContract,
    codec: str | Codec,
    place: TokenPlace | None,
    tokens_folder: str | Path | None,
    options: QdrantOptions,
    engine: Engine | None = None,
    settings: QdrantSettings | None = None,
    text_fields: TextFields | None = None,
    *,
    like: str | None = None,
    side_of: str | None = None,
) -> Parts:
    """Create the parts of an empty collection; see `ImageCollection.create`.

    With `like`, a server's collection gets the settings of another one. `side_of` is the collection
    that a side is created for.

    Raises:
        ConfigError: An argument is invalid.
        CollectionExistsError: The collection exists already.
        StoreError: The collection cannot be written.
        EngineUnavailableError: The server cannot be reached.
    """
    where = resolve(location)
    check_name(name)
    check_engine(engine, folder=isinstance(where, Path))
    check_settings(settings, folder=isinstance(where, Path))
    codec = fitted_codec(contract, codec)
    contract = contract.with_codec(codec.name, codec.hash)
    place = place or ("file" if isinstance(where, Path) else "payload")
    if place not in ("file", "payload"):
        raise ConfigError(f'tokens is {place!r}; give "file" or "payload"')
    if place == "payload" and tokens_folder is not None:
        raise ConfigError('tokens_folder is for tokens="file"; leave it out for "payload"')
    if place == "file" and tokens_folder is None and not isinstance(where, Path):
        raise ConfigError(
            f'tokens="file" at {describe(where)} needs tokens_folder, a folder that every '
            'machine searching the collection can read; or choose tokens="payload"'
        )
    outside = None if tokens_folder is None else absolute(tokens_folder) / name

    if not isinstance(where, Path):
        _require_absent(where, name, options)
        with new_store(outside, contract, codec) as store:
            record = CollectionRecord.of(store, contract, tokens_folder, text_fields)
            record = replace(record, side_of=side_of)
            index = create_on_server(
                where, name, contract.embedding_dim, record.as_metadata(), options, settings,
                like=like,
            )  # fmt: skip
        return Parts(index, store, record, describe(where), Origin(where, (name,), options))

    final = where / name
    with scratch_folder(final) as scratch:
        inside = scratch / "tokens" if place == "file" else None
        with new_store(outside or inside, contract, codec) as store:
            record = CollectionRecord.of(store, contract, tokens_folder, text_fields)
            record = replace(record, side_of=side_of)
            dim, metadata = contract.embedding_dim, record.as_metadata()
            create_embedded(scratch, dim, metadata, engine).close()
            store.close()
            publish(scratch, final)
    return open_parts(where, name, None, options)


def _require_absent(where: Any, name: str, options: QdrantOptions) -> None:
    """Check that a server can be reached and has no such collection, before files are created."""
    connection = Connection(where, options)
    try:
        require_absent(connection, name)
    finally:
        connection.close()


def open_index(where: Any, name: str, options: QdrantOptions) -> VectorIndex:
    """Open the index of a collection at a resolved location; raises as `open_parts`."""
    check_name(name)
    if isinstance(where, Path):
        return open_embedded(where / name)
    return open_on_server(where, name, options)


def open_parts(
    location: Any,
    name: str,
    tokens_folder: str | Path | None,
    options: QdrantOptions,
    *,
    for_repair: bool = False,
) -> Parts:
    """Open a collection's parts; see `ImageCollection.open`.

    After a migration, they are those of the side that has replaced the collection's first one.

    Raises:
        CollectionNotFoundError: There is no such collection; lists those that exist.
        CollectionLockedError: Another process has the folder open.
        StoreError: The collection cannot be read, or another program wrote it.
        ConfigError: An argument is invalid.
        EngineUnavailableError: The server cannot be reached.
    """
    where = resolve(location)
    index, origin = _open_current(where, name, tokens_folder, options)
    return _with_store(index, origin, f"{name!r} at {describe(where)}", for_repair=for_repair)


def open_side(origin: Origin, side: str) -> Parts:
    """Open the parts of a side, whether or not it is the one that is searched.

    Raises:
        CollectionNotFoundError: There is no such side.
        CollectionLockedError: Another process has its folder open.
        StoreError: It cannot be read, or another side has replaced it.
        EngineUnavailableError: The server cannot be reached.
    """
    where, name = origin.place_of(side)
    index = open_index(where, name, origin.options)
    of_side = replace(origin, sides=(origin.front, side))
    return _with_store(index, of_side, f"{side!r} at {describe(where)}")


def _open_current(
    where: Any, name: str, tokens_folder: str | Path | None, options: QdrantOptions
) -> tuple[VectorIndex, Origin]:
    """Open the index of the side that is searched."""
    check_name(name)
    sides: tuple[str, ...] = (name,)
    origin = Origin(where, sides, options, tokens_folder)
    while True:
        to = _moved_in_folder(*origin.place_of(sides[-1]))
        if to is None:
            index = open_index(*origin.place_of(sides[-1]), options)
            if len(sides) == 1:  # an alias is resolved now
                sides = (index.resolved_name or name,)
            origin = replace(origin, sides=sides)
            to = moved_to(index.metadata)
            if to is None:
                return index, origin
            index.close()
        if to in sides:
            raise StoreError(
                f"the metadata of {name!r} at {describe(where)} names {to!r} as the side that is "
                "searched, and that one names another; restore it from a copy"
            )
        sides = (*sides, to)
        origin = replace(origin, sides=sides)


def _moved_in_folder(where: Any, name: str) -> str | None:
    """Return which side has replaced one in a folder, without opening it, as it may be locked."""
    if not isinstance(where, Path):
        return None
    try:
        return moved_to(read_metadata(where / name)[1])
    except StoreError:
        return None  # opening it says what is wrong


def _with_store(
    index: VectorIndex, origin: Origin, what: str, *, for_repair: bool = False
) -> Parts:
    """Open the token store that belongs to an index; close the index if that fails."""
    try:
        record = CollectionRecord.read(index.metadata, what)
        # Side files have the name of the collection itself, whichever alias is opened.
        where, side = origin.place_of(origin.sides[-1])
        store = record.open_store(where, side, origin.tokens_folder, for_repair=for_repair)
    except BaseException:
        index.close()
        raise
    location = describe(origin.where)
    return Parts(index, store, record.with_codec(store.codec), location, origin)
