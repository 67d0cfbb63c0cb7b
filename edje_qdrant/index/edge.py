"""The embedded index: Qdrant Edge, in this process, on this machine's disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.durable import sync_folder
from edje_qdrant.errors import (
    CollectionNotFoundError,
    StoreError,
)
from edje_qdrant.index import hnsw
from edje_qdrant.index.checks import (
    check_dim,
    check_ids,
    check_limit,
    check_metadata,
    check_points,
    check_vectors,
    in_batches,
)
from edje_qdrant.index.folder import (
    lock_folder,
    read_metadata,
    reporting,
    write_metadata,
)
from edje_qdrant.index.protocol import TOKENS_KEY, VectorIndex
from edje_qdrant.index.ranking import SLACK, rank
from edje_qdrant.types import Candidate, Point

if TYPE_CHECKING:
    from qdrant_edge import EdgeShard

__all__ = ["EdgeIndex"]

_SHARD = "shard"
_NEW_SHARD = "shard.new"
_BATCH = 1024


class EdgeIndex(VectorIndex):
    """Keep vectors and payloads in a folder, with nothing to serve.

    One process at a time may have the folder open. Threads may search and write side by side,
    but the engine holds Python's interpreter lock while it works: `optimize` on a large index
    stops every other thread for as long as it takes.
    """

    def __init__(
        self, folder: Path, dim: int, metadata: dict[str, Any], shard: EdgeShard, lock: IO[bytes]
    ) -> None:
        self._folder = folder
        self._dim = dim
        self._metadata = metadata
        self._shard: EdgeShard | None = shard
        self._lock = lock
        self._closing = Lock()

    @classmethod
    def create(cls, folder: Path | str, dim: int, metadata: Mapping[str, Any]) -> EdgeIndex:
        """Make an empty index of `dim`-wide vectors in `folder`, which may exist already.

        Raises:
            ConfigError: `dim` is below 1, or the metadata is no JSON object.
            StoreError: The folder holds an index already, or cannot be written.
            CollectionLockedError: Another process is making or using one there.
        """
        from qdrant_edge import EdgeShard

        folder = Path(folder)
        kept = check_metadata(metadata)
        config = _config(check_dim(dim))
        _refuse_existing(folder)
        with reporting(folder):
            folder.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(folder)
        try:
            _refuse_existing(folder)  # another process may have made one before the lock was ours
            with reporting(folder):
                # The rename is what makes the index exist: a crash before it leaves a folder that
                # create takes again and open reports as empty.
                shutil.rmtree(folder / _NEW_SHARD, ignore_errors=True)
                EdgeShard.create(str(folder / _NEW_SHARD), config).close()
                write_metadata(folder, dim, kept)
                (folder / _NEW_SHARD).rename(folder / _SHARD)
                sync_folder(folder)
                shard = EdgeShard.load(str(folder / _SHARD))
        except BaseException:
            lock.close()
            raise
        return cls(folder, dim, kept, shard, lock)

    @classmethod
    def open(cls, folder: Path | str) -> EdgeIndex:
        """Open the index in `folder`.

        Raises:
            CollectionNotFoundError: There is none; names those beside it.
            CollectionLockedError: It is open already, here or in another process.
            StoreError: It is there but cannot be read.
        """
        from qdrant_edge import EdgeShard

        folder = Path(folder)
        if not (folder / _SHARD).is_dir():
            parent = folder.absolute().parent
            known: list[str] = []
            with suppress(OSError):
                known = sorted(p.name for p in parent.iterdir() if (p / _SHARD).is_dir())
            raise CollectionNotFoundError(str(parent), folder.absolute().name, known)
        lock = lock_folder(folder)
        try:
            with reporting(folder):
                dim, metadata = read_metadata(folder)
                shard = EdgeShard.load(str(folder / _SHARD))
        except BaseException:
            lock.close()
            raise
        return cls(folder, dim, metadata, shard, lock)

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self._metadata

    def upsert(self, points: Sequence[Point]) -> None:
        """Write points; they survive a killed process once `flush` has returned.

        Raises:
            ConfigError: An id, a vector or a payload cannot be stored; nothing was written.
            StoreError: The index is closed, or the engine failed.
        """
        from qdrant_edge import Point as EdgePoint
        from qdrant_edge import UpdateOperation

        checked = check_points(points, self._dim)
        with self._engine() as shard:
            for batch in in_batches(checked, _BATCH):
                shard.update(
                    UpdateOperation.upsert_points(
                        [EdgePoint(point.id, point.vector, point.payload) for point in batch]
                    )
                )

    def flush(self) -> None:
        """Make everything written so far survive a killed process (a power cut it may not)."""
        with self._engine() as shard:
            shard.flush()

    def optimize(self) -> None:
        """Merge what was written and build the graph, where there are vectors enough for one.

        Points written later are scanned until the next call, so searches stay right meanwhile.
        """
        with self._engine() as shard:
            shard.optimize()

    def existing(self, image_ids: Sequence[str]) -> set[str]:
        ids = check_ids(image_ids)
        with self._engine() as shard:
            return {str(record.id) for record in shard.retrieve([*ids], False, False)}

    def search(self, vectors: NDArray[np.float32], limit: int) -> list[list[Candidate]]:
        """Find the nearest points of each of `(q, d)` vectors, best first, `limit` at most.

        Raises:
            ConfigError: The vectors do not fit the index, or `limit` is below 1.
            StoreError: The index is closed, or the engine failed.
        """
        from qdrant_edge import (
            CountRequest,
            PayloadSelector,
            Query,
            QueryBatchRequest,
            QueryRequest,
            SearchParams,
        )

        check_limit(limit)
        queries = check_vectors(vectors, self._dim)
        with self._engine() as shard:
            wanted = min(limit + SLACK, shard.count(CountRequest()))
            if wanted == 0:
                return [[] for _ in queries]
            answers = shard.query_batch(
                QueryBatchRequest(
                    [
                        QueryRequest(
                            limit=wanted,
                            query=Query.Nearest(query.tolist()),
                            with_payload=PayloadSelector.Exclude([f"{TOKENS_KEY}.tokens"]),
                            params=SearchParams(hnsw_ef=hnsw.search_width(wanted)),
                        )
                        for query in queries
                    ]
                )
            )
        return [
            rank(((str(hit.id), hit.score, hit.payload or {}) for hit in hits), limit)
            for hits in answers
        ]

    def retrieve(self, image_ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        ids = check_ids(image_ids)
        with self._engine() as shard:
            records = shard.retrieve([*ids], True, False)
        return {str(record.id): record.payload or {} for record in records}

    def vectors(self, image_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        ids = check_ids(image_ids)
        with self._engine() as shard:
            records = shard.retrieve([*ids], False, True)
        return {str(record.id): np.array(record.vector, np.float32) for record in records}

    def delete(self, image_ids: Sequence[str]) -> None:
        from qdrant_edge import UpdateOperation

        ids = check_ids(image_ids)
        with self._engine() as shard:
            if ids:
                shard.update(UpdateOperation.delete_points([*ids]))

    def count(self) -> int:
        from qdrant_edge import CountRequest

        with self._engine() as shard:
            return shard.count(CountRequest())

    def close(self) -> None:
        with self._closing:
            shard, self._shard = self._shard, None
        if shard is None:
            return
        try:
            with reporting(self._folder):
                try:
                    shard.flush()
                finally:
                    shard.close()
        finally:
            self._lock.close()

    @contextmanager
    def _engine(self) -> Iterator[EdgeShard]:
        shard = self._shard
        closed = f"the index at {self._folder} is closed; open it again"
        if shard is None:
            raise StoreError(closed)
        try:
            with reporting(self._folder):
                yield shard
        except StoreError as error:
            if self._shard is None:  # another thread closed it meanwhile
                raise StoreError(closed) from error
            raise


def _config(dim: int) -> Any:
    from qdrant_edge import (
        Distance,
        EdgeConfig,
        EdgeOptimizersConfig,
        EdgeVectorParams,
        HnswIndexConfig,
    )

    return EdgeConfig(
        vectors=EdgeVectorParams(size=dim, distance=Distance.Cosine),
        hnsw_config=HnswIndexConfig(
            m=hnsw.LINKS,
            ef_construct=hnsw.BUILD_WIDTH,
            full_scan_threshold=hnsw.SCAN_KILOBYTES,
        ),
        optimizers=EdgeOptimizersConfig(indexing_threshold=hnsw.SCAN_KILOBYTES),
    )


def _refuse_existing(folder: Path) -> None:
    if (folder / _SHARD).exists():
        raise StoreError(
            f"there is an index at {folder} already; open it, or choose another folder"
        )
