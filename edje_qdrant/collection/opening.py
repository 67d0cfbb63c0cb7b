"""Creation and opening of a collection's parts: index, token store, and the record of both."""

from __future__ import annotations

from dataclasses import dataclass
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
from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import ConfigError
from edje_qdrant.index import (
    Engine,
    QdrantOptions,
    QdrantSettings,
    VectorIndex,
    create_embedded,
    create_on_server,
    open_embedded,
    open_on_server,
)
from edje_qdrant.index.engines import check_engine
from edje_qdrant.index.qdrant.connection import Connection
from edje_qdrant.index.qdrant.metadata import require_absent
from edje_qdrant.index.qdrant.settings import check_settings
from edje_qdrant.tokens.codecs import Codec
from edje_qdrant.tokens.protocol import TokenStore

__all__ = ["Parts", "create_parts", "open_index", "open_parts"]


@dataclass(frozen=True, slots=True)
class Parts:
    """Hold the open parts of a collection."""

    index: VectorIndex
    store: TokenStore
    record: CollectionRecord
    location: str


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
) -> Parts:
    """Create the parts of an empty collection; see `ImageCollection.create`.

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
            record = CollectionRecord.of(store, contract, tokens_folder)
            index = create_on_server(
                where, name, contract.embedding_dim, record.as_metadata(), options, settings
            )
        return Parts(index, store, record, describe(where))

    final = where / name
    with scratch_folder(final) as scratch:
        inside = scratch / "tokens" if place == "file" else None
        with new_store(outside or inside, contract, codec) as store:
            record = CollectionRecord.of(store, contract, tokens_folder)
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

    Raises:
        CollectionNotFoundError: There is no such collection; lists those that exist.
        CollectionLockedError: Another process has the folder open.
        StoreError: The collection cannot be read, or another program wrote it.
        ConfigError: An argument is invalid.
        EngineUnavailableError: The server cannot be reached.
    """
    where = resolve(location)
    index = open_index(where, name, options)
    try:
        record = CollectionRecord.read(index.metadata, f"{name!r} at {describe(where)}")
        # Side files have the name of the collection itself, whichever alias is opened.
        store = record.open_store(
            where, index.resolved_name or name, tokens_folder, for_repair=for_repair
        )
    except BaseException:
        index.close()
        raise
    return Parts(index, store, record.with_codec(store.codec), describe(where))
