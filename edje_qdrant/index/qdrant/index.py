"""The index on a Qdrant server, cluster or Cloud, or in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edje_qdrant.errors import CollectionNotFoundError, ConfigError, StoreError
from edje_qdrant.index.batches import by_payload, in_batches, in_runs
from edje_qdrant.index.filters.filter import Filter, qdrant_filter, require_filter
from edje_qdrant.index.payload_indexes import PayloadKind, check_field, check_kind, qdrant_schema
from edje_qdrant.index.protocol import VectorIndex
from edje_qdrant.index.qdrant import requests as qdrant_requests
from edje_qdrant.index.qdrant.connection import Connection, QdrantOptions
from edje_qdrant.index.qdrant.metadata import (
    Found,
    as_metadata,
    new_settings,
    read_settings,
    require_absent,
    was_made,
)
from edje_qdrant.index.qdrant.reader import IDS_PER_REQUEST, QdrantReader
from edje_qdrant.index.qdrant.settings import QdrantSettings, check_settings
from edje_qdrant.index.validate import (
    CheckedPayload,
    check_dim,
    check_ids,
    check_keys,
    check_metadata,
    check_name,
    check_payloads,
    check_points,
)
from edje_qdrant.types import Payload, Point

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

__all__ = ["QdrantIndex"]

_DEFAULTS = QdrantOptions()
_SERVERS_OWN = QdrantSettings()


class QdrantIndex(QdrantReader, VectorIndex):
    """Keep vectors and payloads in a Qdrant collection, which many processes may use at once.

    `location` is an address (`"http://localhost:6333"`; port 6333 where none is given),
    `":memory:"`, or a `QdrantClient`. Each `":memory:"` is a new, empty engine: to open what was
    created in memory, pass the same client to both. A client passed in is not closed here. Threads
    may share an index; in memory they must, as the client itself does not keep them apart.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        found: Found,
        options: QdrantOptions,
    ) -> None:
        super().__init__(connection, name, found.dim, options, found.oversampling)
        self._metadata = found.metadata

    @classmethod
    def create(
        cls,
        location: str | QdrantClient,
        name: str,
        dim: int,
        metadata: Mapping[str, Any],
        options: QdrantOptions = _DEFAULTS,
        settings: QdrantSettings | None = None,
    ) -> QdrantIndex:
        """Make an empty collection of `dim`-wide vectors called `name`.

        Args:
            location: Where; see the class.
            name: Letters, digits, `-` and `_`.
            dim: How wide the vectors are.
            metadata: A JSON object to keep with the collection.
            options: How to reach the server.
            settings: How the server is to keep the collection; in memory nothing comes of it.

        Raises:
            ConfigError: The location, the name, `dim` or the metadata cannot be used.
            StoreError: There is a collection of that name.
            EngineUnavailableError: The server cannot be reached.
        """
        check_name(name)
        check_dim(dim)
        check_settings(settings, folder=False)
        kept = check_metadata(metadata)
        connection = Connection(location, options)
        client = connection.client
        try:
            require_absent(connection, name)
            try:
                connection.call(
                    name,
                    client.create_collection,
                    name,
                    **new_settings(dim, settings or _SERVERS_OWN),
                    metadata=as_metadata(kept),
                )
            except (ConfigError, StoreError):
                # Made by the first try, of which the answer was lost?
                if not was_made(connection, name, kept):
                    raise
            # Read back, as an old server drops metadata without a word.
            found = read_settings(connection, name)
        except BaseException:
            connection.close()
            raise
        return cls(connection, name, found._replace(dim=dim, metadata=kept), options)

    @classmethod
    def open(
        cls, location: str | QdrantClient, name: str, options: QdrantOptions = _DEFAULTS
    ) -> QdrantIndex:
        """Open the collection called `name`.

        Raises:
            CollectionNotFoundError: There is none; names those that are there.
            StoreError: It was not made by this package.
            ConfigError: The location or the API key cannot be used.
            EngineUnavailableError: The server cannot be reached.
        """
        connection = Connection(location, options)
        try:
            if not connection.call(name, connection.client.collection_exists, name):
                raise CollectionNotFoundError(connection.address, name, connection.known())
            found = read_settings(connection, name)
        except BaseException:
            connection.close()
            raise
        return cls(connection, name, found, options)

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self._metadata

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Replace the metadata in one step, and read it back; what others keep there stays.

        Raises:
            ConfigError: The metadata is no JSON object.
            StoreError: The server does not give back what was written.
            EngineUnavailableError: The server went away; the metadata is the old or the new.
        """
        kept = check_metadata(metadata)
        self._connection.call(
            self._name,
            self._client.update_collection,
            self._name,
            metadata=as_metadata(kept),
        )
        # In a cluster another node may answer, a moment behind the one that wrote.
        for tries in range(self._options.retries + 1):
            if self.reload_metadata() == kept:
                return
            if tries < self._options.retries:
                self._connection.pause(tries)
        raise StoreError(
            f"collection {self._name!r} at {self._connection.address} has other metadata than was "
            "just written: another process wrote it at the same time, or the server mixed old and "
            "new; let one process write it, and check that the server is Qdrant 1.16 or later"
        )

    def reload_metadata(self) -> Mapping[str, Any]:
        """Read the metadata from the server again, and return it.

        Raises:
            StoreError: The collection has none any more.
            EngineUnavailableError: The server cannot be reached.
        """
        self._metadata = read_settings(self._connection, self._name).metadata
        return self._metadata

    def upsert(self, points: Sequence[Point]) -> None:
        """Write points; what was written is on the server's disk log on return.

        Writing a point again changes nothing, so requests that got no answer are sent again.

        Raises:
            ConfigError: An id, a vector or a payload cannot be stored; nothing was written.
            EngineUnavailableError: The server went away; earlier batches may have been written.
        """
        from qdrant_client import models

        self._connection.require_open(self._name)
        for batch in in_batches(check_points(points, self._dim), self._options.batch_size):
            self._connection.call(
                self._name,
                self._client.upsert,
                self._name,
                [models.PointStruct(id=p.id, vector=p.vector, payload=p.payload) for p in batch],
                wait=True,
            )

    def set_payload(self, payloads: Mapping[str, Payload]) -> None:
        """Set keys of stored payloads; what was set is on the server's disk log on return.

        Many travel in one request. Setting a key again changes nothing, so requests that got no
        answer are sent again.

        Raises:
            ConfigError: An id or a payload cannot be used; nothing was written.
            EngineUnavailableError: The server went away; earlier batches may have been written.
        """
        self._connection.require_open(self._name)
        for batch in in_batches(check_payloads(payloads), self._options.batch_size):
            self._connection.call(self._name, self._set_payload, batch)

    def remove_payload_keys(self, image_ids: Sequence[str], keys: Sequence[str]) -> None:
        """Remove top-level keys; that they are gone is on the server's disk log on return.

        Raises:
            ConfigError: An id or a key cannot be used; nothing was removed.
            EngineUnavailableError: The server went away; some may have been removed.
        """
        self._connection.require_open(self._name)
        ids, paths = check_ids(image_ids), check_keys(keys)
        for run in in_runs(ids if paths else [], IDS_PER_REQUEST):
            self._connection.call(
                self._name,
                self._client.delete_payload,
                self._name,
                paths,
                qdrant_requests.stored(run),
                wait=True,
            )

    def create_payload_index(self, field: str, kind: PayloadKind) -> None:
        """Index a payload field; on return the server has done so.

        In memory there are no such indexes: every filter goes through all points, and finds the
        same. So nothing is done there but to check what was given.

        Raises:
            ConfigError: The field cannot be indexed, or there is no such kind.
            EngineUnavailableError: The server cannot be reached.
        """
        path = check_field(field)
        schema = qdrant_schema(check_kind(kind))
        self._connection.require_open(self._name)
        if not self._connection.is_local:
            self._connection.call(
                self._name,
                self._client.create_payload_index,
                self._name,
                path,
                field_schema=schema,
                wait=True,
            )

    def flush(self) -> None:
        """Check that the index is open; an acknowledged write is in the server's log already."""
        self._connection.require_open(self._name)

    def optimize(self) -> None:
        """Check that the index is open; the server builds its graph in the background."""
        self._connection.require_open(self._name)

    def delete(self, image_ids: Sequence[str]) -> None:
        from qdrant_client import models

        self._connection.require_open(self._name)
        for ids in in_runs(check_ids(image_ids), IDS_PER_REQUEST):
            selector = models.PointIdsList(points=[*ids])
            self._connection.call(self._name, self._client.delete, self._name, selector, wait=True)

    def delete_matching(self, filter: Filter) -> None:
        """Remove every point that the filter lets through.

        A request that got no answer is sent again, and also removes what was written meanwhile.

        Raises:
            ConfigError: The filter is empty, or cannot be used; nothing was removed. A server in
                strict mode also refuses fields without a payload index.
            EngineUnavailableError: The server went away; some points may have been removed.
        """
        from qdrant_client import models

        chosen = qdrant_filter(filter)
        require_filter(filter)
        assert chosen is not None
        selector = models.FilterSelector(filter=chosen)
        self._connection.call(self._name, self._client.delete, self._name, selector, wait=True)

    def close(self) -> None:
        self._connection.close()

    def _set_payload(self, batch: Sequence[CheckedPayload]) -> None:
        local = self._connection.is_local
        if local:  # it goes through every point to find one by a filter
            ids = [item.id for item in batch]
            found = self._client.retrieve(self._name, ids, with_payload=False)
            known = {str(record.id) for record in found}
            batch = [item for item in batch if item.id in known]
        operations = [
            qdrant_requests.setting_payload(payload, ids if local else qdrant_requests.stored(ids))
            for ids, payload in by_payload(batch)
        ]
        if operations:
            self._client.batch_update_points(self._name, operations, wait=True)
