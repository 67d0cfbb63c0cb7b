"""The embedded index on faiss: points in SQLite, vectors in memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import StoreError
from edje_qdrant.files import sync_folder
from edje_qdrant.index.batches import in_batches
from edje_qdrant.index.faiss.built import Built, FaissKind, check_kind, load_faiss, remove_others
from edje_qdrant.index.faiss.database import BuiltRecord, Database
from edje_qdrant.index.faiss.reader import FaissReader
from edje_qdrant.index.faiss.snapshot import Snapshot, Tail
from edje_qdrant.index.filters.filter import Filter, qdrant_filter, require_filter
from edje_qdrant.index.folder import (
    FAISS,
    lock_folder,
    read_metadata,
    refuse_existing,
    reporting,
    require_existing,
    require_space,
    write_metadata,
)
from edje_qdrant.index.folder_metadata import FolderMetadata
from edje_qdrant.index.payload_indexes import PayloadKind, check_field
from edje_qdrant.index.payload_indexes import check_kind as check_payload_kind
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

__all__ = ["FaissIndex"]

_NEW = "faiss.new"
_POINTS = "points.sqlite"
_BATCH = 1024

# Part of a built index that may be gone before it is built anew, not only added to.
_GONE = 0.2


class FaissIndex(FaissReader, FolderMetadata, VectorIndex):
    """Keep points in a folder and vectors in memory, with nothing to serve.

    One process at a time may have the folder open. Threads may search and write side by side;
    faiss lets go of Python's interpreter lock while it works. Every write is on the disk when it
    returns, in an SQLite file; what `optimize` builds is a file that can be made again from that,
    and is when it is lost or damaged. Vectors written since are scanned.

    Kinds: `flat` compares a query with every vector; `ivf` with those of the nearest cells;
    `hnsw` walks a graph. Below 10,000 vectors all of them scan.
    """

    def __init__(
        self,
        folder: Path,
        metadata: dict[str, Any],
        database: Database,
        snapshot: Snapshot,
        lock: IO[bytes],
    ) -> None:
        super().__init__(folder, database, snapshot)
        self._kind = check_kind(database.kind)
        self._metadata = metadata
        self._lock = lock
        self._closing, self._building = Lock(), Lock()

    @classmethod
    def create(
        cls,
        folder: Path | str,
        dim: int,
        metadata: Mapping[str, Any],
        kind: FaissKind = "flat",
    ) -> FaissIndex:
        """Make an empty index of `dim`-wide vectors in `folder`, which may exist already.

        Raises:
            ConfigError: `dim` is below 1, the metadata is no JSON object, or there is no such kind.
            StoreError: The folder holds an index already, or cannot be written.
            CollectionLockedError: Another process is making or using one there.
            MissingExtraError: faiss is not installed.
        """
        load_faiss()
        folder = Path(folder)
        kept = check_metadata(metadata)
        check_dim(dim)
        check_kind(kind)
        refuse_existing(folder)
        with reporting(folder):
            folder.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(folder)
        try:
            refuse_existing(folder)  # another process may have made one before the lock was ours
            with reporting(folder):
                # The rename is what makes the index exist: a crash before it leaves a folder that
                # create takes again and open reports as empty.
                shutil.rmtree(folder / _NEW, ignore_errors=True)
                require_space(folder)
                (folder / _NEW).mkdir()
                Database.create(folder / _NEW / _POINTS, dim, kind)
                sync_folder(folder / _NEW)
                write_metadata(folder, dim, kept)
                (folder / _NEW).rename(folder / FAISS)
                sync_folder(folder)
                database = Database(folder / FAISS / _POINTS)
        except BaseException:
            lock.close()
            raise
        return cls(folder, kept, database, Snapshot(None, Tail.empty(dim)), lock)

    @classmethod
    def open(cls, folder: Path | str) -> FaissIndex:
        """Open the index in `folder`; what was built is built again if its file is damaged.

        Raises:
            CollectionNotFoundError: There is none; names those beside it.
            CollectionLockedError: It is open already, here or in another process.
            StoreError: It is there but cannot be read.
            MissingExtraError: faiss is not installed.
        """
        load_faiss()
        folder = Path(folder)
        require_existing(folder, FAISS)
        lock = lock_folder(folder)
        try:
            with reporting(folder):
                dim, metadata = read_metadata(folder)
                if not (folder / FAISS / _POINTS).is_file():
                    raise StoreError(
                        f"{folder / FAISS / _POINTS} is missing; put it back from a copy, or "
                        "ingest again into a new folder"
                    )
                database = Database(folder / FAISS / _POINTS)
                try:
                    index = cls._opened(folder, dim, metadata, database, lock)
                except BaseException:
                    database.close()
                    raise
        except BaseException:
            lock.close()
            raise
        return index

    @classmethod
    def _opened(
        cls,
        folder: Path,
        dim: int,
        metadata: dict[str, Any],
        database: Database,
        lock: IO[bytes],
    ) -> FaissIndex:
        if database.dim != dim:
            raise StoreError(
                f"{folder} holds vectors of width {database.dim}, and index.json speaks of {dim}: "
                "one of both is another index's; put it back from a copy"
            )
        record, built = database.built(), None
        if record is not None:
            built = Built.load(folder / FAISS, record.shape, record.digest, record.rows)
        index = cls(folder, metadata, database, _snapshot(database, built), lock)
        if record is not None and built is None:
            with suppress(StoreError):  # on a full disk, for one; a scan finds the same
                index.optimize()
        remove_others(folder / FAISS, [] if (kept := database.built()) is None else [kept.digest])
        return index

    @property
    def kind(self) -> FaissKind:
        """Return how vectors are searched."""
        return self._kind

    def upsert(self, points: Sequence[Point]) -> None:
        """Write points; they are on the disk on return.

        Raises:
            ConfigError: An id, a vector or a payload cannot be stored; nothing was written.
            StoreError: The index is closed, or the disk is full; earlier batches may have been
                written.
        """
        checked = check_points(points, self._dim)
        with self._engine():
            for batch in in_batches(checked, _BATCH):
                vectors = np.array([point.vector for point in batch], np.float32)
                with self._writing() as database:
                    gone, rows = database.put(batch, vectors)
                    self._snapshot = self._snapshot.without(gone).extended(rows, vectors)

    def set_payload(self, payloads: Mapping[str, Payload]) -> None:
        """Set keys of stored payloads; this is on the disk on return.

        Raises:
            ConfigError: An id or a payload cannot be used; nothing was written.
            StoreError: The index is closed, or the disk is full; some may have been set.
        """
        checked = check_payloads(payloads)
        with self._engine():
            for batch in in_batches(checked, _BATCH):
                with self._writing() as database:
                    database.set_payloads((item.id, item.payload) for item in batch)

    def remove_payload_keys(self, image_ids: Sequence[str], keys: Sequence[str]) -> None:
        """Remove top-level keys; this is on the disk on return.

        Raises:
            ConfigError: An id or a key cannot be used; nothing was removed.
            StoreError: The index is closed, or the disk is full; nothing was removed.
        """
        ids = check_ids(image_ids)
        check_keys(keys)
        with self._engine(), self._writing() as database:
            database.remove_keys(ids, [*keys])

    def create_payload_index(self, field: str, kind: PayloadKind) -> None:
        """Check what was given, and do nothing: here every filter goes through all payloads.

        Raises:
            ConfigError: The field cannot be indexed, or there is no such kind.
            StoreError: The index is closed.
        """
        check_field(field)
        check_payload_kind(kind)
        with self._engine():
            pass

    def flush(self) -> None:
        """Check that the index is open; what was written is on the disk already.

        Raises:
            StoreError: The index is closed.
        """
        with self._engine():
            pass

    def optimize(self) -> None:
        """Build the index of what was written, without what is gone.

        A graph and cells are added to, as long as that does; then nothing is trained. Searches and
        writes go on meanwhile. For a moment there are two copies of the vectors in memory.

        Raises:
            StoreError: The index is closed, or the disk is full; searches are right nevertheless.
        """
        with self._engine() as database, self._building:
            snapshot = self._snapshot
            if snapshot.settled:
                return
            require_space(self._folder, snapshot.count * self._dim * 4)
            built = self._build(database, snapshot)
            record = None
            if built is not None:
                digest = built.save(self._folder / FAISS)
                record = BuiltRecord(built.shape, digest, built.rows)
            with self._writes:  # what was written meanwhile joins it
                database.set_built(record)
                self._snapshot = _snapshot(database, built)
            remove_others(self._folder / FAISS, [] if record is None else [record.digest])

    def delete(self, image_ids: Sequence[str]) -> None:
        """Remove points; this is on the disk on return.

        Raises:
            ConfigError: An id cannot be used; nothing was removed.
            StoreError: The index is closed, or the disk is full; nothing was removed.
        """
        ids = check_ids(image_ids)
        with self._engine(), self._writing() as database:
            self._remove(database, np.array([*database.rows_of(ids).values()], np.int64))

    def delete_matching(self, filter: Filter) -> None:
        """Remove points by filter; this is on the disk on return.

        Raises:
            ConfigError: The filter is empty, or cannot be used; nothing was removed.
            StoreError: The index is closed, or the disk is full; nothing was removed.
        """
        chosen = qdrant_filter(filter)
        require_filter(filter)
        assert chosen is not None
        with self._engine(), self._writing() as database:
            self._remove(database, self._matching.rows(chosen))

    def close(self) -> None:
        with self._closing:
            database, self._database = self._database, None
        if database is None:
            return
        try:
            with reporting(self._folder):
                database.close()
        finally:
            self._lock.close()

    @contextmanager
    def _writing(self) -> Iterator[Database]:
        with self._writes, self._engine() as database:
            self._matching.forget()
            try:
                yield database
            finally:
                self._matching.forget()

    def _remove(self, database: Database, rows: NDArray[np.int64]) -> None:
        database.delete(rows.tolist())
        self._snapshot = self._snapshot.without(rows)

    def _build(self, database: Database, snapshot: Snapshot) -> Built | None:
        built, tail = snapshot.built, snapshot.tail
        if (
            built is not None
            and snapshot.gone <= _GONE * len(built.rows)
            and built.extensible(self._kind, tail.count)
        ):
            kept = slice(None) if snapshot.tail_gone is None else ~snapshot.tail_gone
            return built.extended(tail.rows[kept], tail.vectors[kept])
        rows, vectors = _all_vectors(database, snapshot)
        return Built.of(self._kind, rows, vectors) if len(rows) else None


def _snapshot(database: Database, built: Built | None) -> Snapshot:
    """Return what there is, as far as it is not in the built index in a tail."""
    tail = Tail.empty(database.dim)
    last = 0 if built is None else int(built.rows[-1])
    for rows, vectors in database.vectors_after(last):
        tail = tail.extended(rows, vectors)
    snapshot = Snapshot(built, tail)
    if built is None:
        return snapshot
    return snapshot.without(np.setdiff1d(built.rows, database.row_numbers()))


def _all_vectors(
    database: Database, snapshot: Snapshot
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the `(n,)` rows of a snapshot and their `(n, d)` vectors, but for what went since."""
    numbers = np.empty(snapshot.count, np.int64)
    room = np.empty((snapshot.count, database.dim), np.float32)
    count = 0
    for rows, vectors in database.vectors_after(0):
        kept = rows <= snapshot.last
        after = count + int(np.count_nonzero(kept))
        numbers[count:after], room[count:after] = rows[kept], vectors[kept]
        count = after
        if not kept[-1]:
            break
    return numbers[:count], room[:count]
