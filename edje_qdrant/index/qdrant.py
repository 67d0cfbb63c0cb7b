"""The index on a Qdrant server, cluster or Cloud, or in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import CollectionNotFoundError, StoreError
from edje_qdrant.index import hnsw
from edje_qdrant.index.checks import (
    check_dim,
    check_ids,
    check_limit,
    check_metadata,
    check_name,
    check_points,
    check_vectors,
    in_batches,
    vectors_per_request,
)
from edje_qdrant.index.connection import Connection, QdrantOptions
from edje_qdrant.index.protocol import TOKENS_KEY, VectorIndex
from edje_qdrant.index.ranking import SLACK, rank
from edje_qdrant.types import Candidate, Point

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models

__all__ = ["QdrantIndex"]

T = TypeVar("T")

#: The key of Qdrant's collection metadata that holds ours.
_METADATA_KEY = "edje_qdrant"

_IDS_PER_REQUEST = 4096
_DEFAULTS = QdrantOptions()


class QdrantIndex(VectorIndex):
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
        dim: int,
        metadata: dict[str, Any],
        options: QdrantOptions,
    ) -> None:
        self._connection = connection
        self._client = connection.client
        self._name = name
        self._dim = dim
        self._metadata = metadata
        self._options = options

    @classmethod
    def create(
        cls,
        location: str | QdrantClient,
        name: str,
        dim: int,
        metadata: Mapping[str, Any],
        options: QdrantOptions = _DEFAULTS,
    ) -> QdrantIndex:
        """Make an empty collection of `dim`-wide vectors called `name`.

        Raises:
            ConfigError: The location, the name, `dim` or the metadata cannot be used.
            StoreError: There is a collection of that name.
            EngineUnavailableError: The server cannot be reached.
        """
        from qdrant_client import models

        check_name(name)
        check_dim(dim)
        kept = check_metadata(metadata)
        connection = Connection(location, options)
        client = connection.client
        try:
            if connection.call(name, client.collection_exists, name):
                raise StoreError(
                    f"there is a collection {name!r} at {connection.address} already; "
                    "open it, or choose another name"
                )
            connection.call(
                name,
                client.create_collection,
                name,
                vectors_config=models.VectorParams(size=dim, distance=models.Distance.COSINE),
                hnsw_config=models.HnswConfigDiff(
                    m=hnsw.LINKS,
                    ef_construct=hnsw.BUILD_WIDTH,
                    full_scan_threshold=hnsw.SCAN_KILOBYTES,
                ),
                optimizers_config=models.OptimizersConfigDiff(
                    indexing_threshold=hnsw.SCAN_KILOBYTES
                ),
                metadata={_METADATA_KEY: kept},
            )
            _read_settings(connection, name)  # an old server drops metadata without a word
        except BaseException:
            connection.close()
            raise
        return cls(connection, name, dim, kept, options)

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
            dim, metadata = _read_settings(connection, name)
        except BaseException:
            connection.close()
            raise
        return cls(connection, name, dim, metadata, options)

    @property
    def metadata(self) -> Mapping[str, Any]:
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

    def flush(self) -> None:
        """Check that the index is open; an acknowledged write is in the server's log already."""
        self._connection.require_open(self._name)

    def optimize(self) -> None:
        """Check that the index is open; the server builds its graph in the background."""
        self._connection.require_open(self._name)

    def existing(self, image_ids: Sequence[str]) -> set[str]:
        return {str(r.id) for r in self._records(image_ids, _IDS_PER_REQUEST, with_payload=False)}

    def search(self, vectors: NDArray[np.float32], limit: int) -> list[list[Candidate]]:
        """Find the nearest points of each of `(q, d)` vectors, best first, `limit` at most.

        All vectors travel in one request, up to 16 MB of them.

        Raises:
            ConfigError: The vectors do not fit the collection, or `limit` is below 1.
            EngineUnavailableError: The server cannot be reached.
        """
        from qdrant_client import models

        check_limit(limit)
        queries = check_vectors(vectors, self._dim)
        wanted = limit + SLACK
        # Local mode scans everything, and warns when told how to walk.
        width = None if self._connection.is_local else hnsw.search_width(wanted)
        requests = [
            models.QueryRequest(
                query=query.tolist(),
                limit=wanted,
                with_payload=models.PayloadSelectorExclude(exclude=[f"{TOKENS_KEY}.tokens"]),
                params=models.SearchParams(hnsw_ef=width) if width else None,
            )
            for query in queries
        ]
        self._connection.require_open(self._name)
        ranked: list[list[Candidate]] = []
        for run in _runs(requests, vectors_per_request(self._dim)):
            answers = self._connection.call(
                self._name, self._client.query_batch_points, self._name, run
            )
            ranked += [
                rank(((str(hit.id), hit.score, hit.payload or {}) for hit in answer.points), limit)
                for answer in answers
            ]
        return ranked

    def retrieve(self, image_ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        records = self._records(image_ids, self._options.batch_size, with_payload=True)
        return {str(record.id): record.payload or {} for record in records}

    def vectors(self, image_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        step = vectors_per_request(self._dim)
        records = self._records(image_ids, step, with_payload=False, with_vectors=True)
        return {str(record.id): np.array(record.vector, np.float32) for record in records}

    def delete(self, image_ids: Sequence[str]) -> None:
        from qdrant_client import models

        self._connection.require_open(self._name)
        for ids in _runs(check_ids(image_ids), _IDS_PER_REQUEST):
            selector = models.PointIdsList(points=[*ids])
            self._connection.call(self._name, self._client.delete, self._name, selector, wait=True)

    def count(self) -> int:
        return self._connection.call(self._name, self._client.count, self._name, exact=True).count

    def close(self) -> None:
        self._connection.close()

    def _records(
        self,
        image_ids: Sequence[str],
        step: int,
        *,
        with_payload: bool,
        with_vectors: bool = False,
    ) -> list[models.Record]:
        self._connection.require_open(self._name)
        records: list[models.Record] = []
        for ids in _runs(check_ids(image_ids), step):
            records += self._connection.call(
                self._name,
                self._client.retrieve,
                self._name,
                ids,
                with_payload=with_payload,
                with_vectors=with_vectors,
            )
        return records


def _runs(items: list[T], step: int) -> Iterator[list[T]]:
    for start in range(0, len(items), step):
        yield items[start : start + step]


def _read_settings(connection: Connection, name: str) -> tuple[int, dict[str, Any]]:
    """Return width and metadata of a collection, or raise StoreError where it is not ours."""
    from qdrant_client import models

    config = connection.call(name, connection.client.get_collection, name).config
    vectors = config.params.vectors
    metadata = (config.metadata or {}).get(_METADATA_KEY)
    if (
        not isinstance(vectors, models.VectorParams)
        or vectors.distance != models.Distance.COSINE
        or not isinstance(metadata, dict)
    ):
        raise StoreError(
            f"collection {name!r} at {connection.address} lacks what edje-qdrant writes with it: "
            "it was made by something else, or by a server older than Qdrant 1.16, which keeps "
            "no metadata; choose another name, or upgrade the server and delete it"
        )
    return vectors.size, metadata
