"""The embedded index: Qdrant Edge, in this process, on this machine's disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import IO, TYPE_CHECKING, Any

from edje_qdrant.files import sync_folder
from edje_qdrant.index.batches import by_payload, in_batches
from edje_qdrant.index.edge import requests as edge_requests
from edje_qdrant.index.edge.filter import edge_filter
from edje_qdrant.index.edge.reader import EdgeReader
from edje_qdrant.index.filters.filter import Filter, require_filter
from edje_qdrant.index.folder import (
    SHARD,
    lock_folder,
    read_metadata,
    refuse_existing,
    reporting,
    require_existing,
    require_space,
    write_metadata,
)
from edje_qdrant.index.folder_metadata import FolderMetadata
from edje_qdrant.index.payload_indexes import PayloadKind, check_field, check_kind
from edje_qdrant.index.protocol import VectorIndex
from edje_qdrant.index.validate import (
    check_dim,
    check_ids,
    check_keys,
    check_metadata,
    check_payloads,
    check_points,
)
from edje_qdrant.types import Payload, Point

if TYPE_CHECKING:
    from qdrant_edge import EdgeShard

__all__ = ["EdgeIndex"]

_NEW_SHARD = "shard.new"
_BATCH = 1024


class EdgeIndex(EdgeReader, FolderMetadata, VectorIndex):
    """Keep vectors and payloads in a folder, with nothing to serve.

    One process at a time may have the folder open. Threads may search and write side by side,
    but the engine holds Python's interpreter lock while it works: `optimize` on a large index
    stops every other thread for as long as it takes.
    """

    def __init__(
        self, folder: Path, dim: int, metadata: dict[str, Any], shard: EdgeShard, lock: IO[bytes]
    ) -> None:
        super().__init__(folder, dim, shard)
        self._metadata = metadata
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
        config = edge_requests.config(check_dim(dim))
        refuse_existing(folder)
        with reporting(folder):
            folder.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(folder)
        try:
            refuse_existing(folder)  # another process may have made one before the lock was ours
            with reporting(folder):
                # The rename is what makes the index exist: a crash before it leaves a folder that
                # create takes again and open reports as empty.
                shutil.rmtree(folder / _NEW_SHARD, ignore_errors=True)
                require_space(folder)
                EdgeShard.create(str(folder / _NEW_SHARD), config).close()
                write_metadata(folder, dim, kept)
                (folder / _NEW_SHARD).rename(folder / SHARD)
                sync_folder(folder)
                shard = EdgeShard.load(str(folder / SHARD))
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
        require_existing(folder, SHARD)
        lock = lock_folder(folder)
        try:
            with reporting(folder):
                dim, metadata = read_metadata(folder)
                shard = EdgeShard.load(str(folder / SHARD))
        except BaseException:
            lock.close()
            raise
        return cls(folder, dim, metadata, shard, lock)

    def upsert(self, points: Sequence[Point]) -> None:
        """Write points; they survive a killed process once `flush` has returned.

        Raises:
            ConfigError: An id, a vector or a payload cannot be stored; nothing was written.
            StoreError: The index is closed, the disk is nearly full, or the engine failed; earlier
                batches may have been written.
        """
        checked = check_points(points, self._dim)
        with self._engine() as shard:
            for batch in in_batches(checked, _BATCH):
                require_space(self._folder)
                shard.update(edge_requests.upsert(batch))

    def set_payload(self, payloads: Mapping[str, Payload]) -> None:
        """Set keys of stored payloads; this survives a killed process once `flush` has returned.

        Raises:
            ConfigError: An id or a payload cannot be used; nothing was written.
            StoreError: The index is closed, the disk is nearly full, or the engine failed; some
                payloads may have been set.
        """
        checked = check_payloads(payloads)
        with self._engine() as shard:
            for batch in in_batches(checked, _BATCH):
                require_space(self._folder)
                for ids, payload in by_payload(batch):
                    shard.update(edge_requests.set_payload(ids, payload))

    def remove_payload_keys(self, image_ids: Sequence[str], keys: Sequence[str]) -> None:
        """Remove top-level keys; this survives a killed process once `flush` has returned.

        Raises:
            ConfigError: An id or a key cannot be used; nothing was removed.
            StoreError: The index is closed, or the engine failed.
        """
        ids, paths = check_ids(image_ids), check_keys(keys)
        with self._engine() as shard:
            if ids and paths:
                shard.update(edge_requests.remove_keys(ids, paths))

    def create_payload_index(self, field: str, kind: PayloadKind) -> None:
        """Index a payload field; this survives a killed process once `flush` has returned.

        The graph gets links for the field as well if `optimize` builds it later.

        Raises:
            ConfigError: The field cannot be indexed, or there is no such kind.
            StoreError: The index is closed, or the engine failed.
        """
        operation = edge_requests.index_field(check_field(field), check_kind(kind))
        with self._engine() as shard:
            shard.update(operation)

    def flush(self) -> None:
        """Make every write so far survive a killed process (a power cut it may not).

        That goes for points and payloads set and removed, by id and by filter. The engine writes
        a log as well, from which it usually takes up later writes too; nothing here counts on it.
        """
        with self._engine() as shard:
            shard.flush()

    def optimize(self) -> None:
        """Merge what was written and build the graph, where there are vectors enough for one.

        Points written later are scanned until the next call, so searches stay right meanwhile.

        Raises:
            StoreError: The index is closed, the disk has no room for a second copy of what is
                merged, or the engine failed.
        """
        with self._engine() as shard:
            require_space(self._folder, _allocated(self._folder / SHARD))
            shard.optimize()

    def delete(self, image_ids: Sequence[str]) -> None:
        """Remove points; this survives a killed process once `flush` has returned.

        Raises:
            ConfigError: An id cannot be used; nothing was removed.
            StoreError: The index is closed, or the engine failed.
        """
        from qdrant_edge import UpdateOperation

        ids = check_ids(image_ids)
        with self._engine() as shard:
            if ids:
                shard.update(UpdateOperation.delete_points([*ids]))

    def delete_matching(self, filter: Filter) -> None:
        """Remove points by filter; this survives a killed process once `flush` has returned.

        Raises:
            ConfigError: The filter is empty, or cannot be used; nothing was removed.
            StoreError: The index is closed, or the engine failed.
        """
        from qdrant_edge import UpdateOperation

        chosen = edge_filter(filter)
        require_filter(filter)
        assert chosen is not None
        with self._engine() as shard:
            shard.update(UpdateOperation.delete_points_by_filter(chosen))

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


def _allocated(folder: Path) -> int:
    """Return the bytes that a folder's files take on the disk, holes left out."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # the engine may be tidying up
            status = path.stat()
            # Windows does not count blocks.
            total += 512 * getattr(status, "st_blocks", -(-status.st_size // 512))
    return total
