"""The embedded engine on faiss: points in SQLite, vectors in memory, every search exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from edje_qdrant.errors import StoreError
from edje_qdrant.files import sync_folder
from edje_qdrant.index.backend import Found, Hits
from edje_qdrant.index.faiss.database import Database
from edje_qdrant.index.faiss.vectors import Rows, Vectors, load_faiss
from edje_qdrant.index.filters.filter import Filter, qdrant_filter
from edje_qdrant.index.filters.match import compile_filter, required_texts
from edje_qdrant.index.folder import FAISS
from edje_qdrant.index.folder_backend import FolderBackend
from edje_qdrant.index.newest import NewestPage
from edje_qdrant.index.validate import CheckedPayload, CheckedPoint
from edje_qdrant.index.words import TextFields
from edje_qdrant.types import Point

if TYPE_CHECKING:
    from qdrant_client import models

__all__ = ["FaissBackend"]

_POINTS = "points.sqlite"

# Filters whose matches are kept, 8 bytes for each matching point.
_KEPT_MATCHES = 8

_Find = Callable[[Vectors, "Rows | None"], list[list[tuple[int, float]]]]


class FaissBackend(FolderBackend[Database]):
    """Points in an SQLite file and their vectors in memory.

    Every write is on the disk when it returns. Threads may search and write at the same time;
    faiss releases Python's interpreter lock while it works. A filter reads every payload the first
    time; its matches are kept until the next write.
    """

    name = "faiss"
    subfolder = FAISS

    def __init__(
        self, folder: Path, dim: int, metadata: dict[str, Any], engine: Database,
        *, read_only: bool,
    ) -> None:  # fmt: skip
        super().__init__(folder, dim, metadata, engine, read_only=read_only)
        if engine.dim != dim:
            raise StoreError(
                f"{folder} holds vectors of width {engine.dim}, but index.json says {dim}: "
                "one of the two belongs to another index; put it back from a copy"
            )
        for path in (folder / FAISS).glob("built*"):  # copies of vectors, by earlier versions
            if not read_only:
                path.unlink()
        vectors = Vectors.empty(dim, engine.count())
        for rows, page in engine.all_vectors():
            vectors = vectors.extended(rows, page)
        self._vectors = vectors
        self._writes = RLock()
        self._version = 0  # odd during a write
        self._matches: dict[str, Rows] = {}

    @classmethod
    def create(cls, folder: Path, dim: int, metadata: Mapping[str, Any]) -> Self:
        load_faiss()  # before anything is made
        if TextFields.read(metadata) is not None:
            raise cls._no_words()
        return super().create(folder, dim, metadata)

    @staticmethod
    def _create(folder: Path, dim: int, *, words: bool) -> None:  # noqa: ARG004 - refused above
        folder.mkdir()
        Database.create(folder / _POINTS, dim)
        sync_folder(folder)

    @staticmethod
    def _load(folder: Path, dim: int, *, read_only: bool) -> Database:  # noqa: ARG004 - in the file
        load_faiss()
        if not (folder / _POINTS).is_file():
            raise StoreError(
                f"{folder / _POINTS} is missing; put it back from a copy, or ingest again into a "
                "new folder"
            )
        return Database(folder / _POINTS, read_only=read_only)

    def translate(
        self,
        filter: Filter | None,
        timeout: float | None = None,  # noqa: ARG002 - nothing is waited for
    ) -> models.Filter | None:
        return qdrant_filter(filter)

    def nearest(
        self,
        queries: NDArray[np.float32],
        wanted: int,
        chosen: models.Filter | None,
        timeout: float | None,  # noqa: ARG002 - this engine cannot be interrupted
    ) -> list[Hits]:
        return self._search(chosen, lambda vectors, rows: vectors.nearest(queries, wanted, rows))

    def best_score(
        self,
        positive: NDArray[np.float32],
        negative: NDArray[np.float32],
        wanted: int,
        chosen: models.Filter | None,
    ) -> Hits:
        def find(vectors: Vectors, rows: Rows | None) -> list[list[tuple[int, float]]]:
            return [vectors.best_score(positive, negative, wanted, rows)]

        return self._search(chosen, find)[0]

    def fetch(
        self, ids: Sequence[str], *, payload: bool = False, tokens: bool = False,
        vectors: bool = False,
    ) -> list[Point]:  # fmt: skip
        with self._using() as database:
            return database.fetch(ids, payload=payload, tokens=tokens, vectors=vectors)

    def page(
        self,
        start: Any,
        size: int,
        chosen: models.Filter | None,
        *,
        payload: bool,
        tokens: bool,
        vectors: bool,
    ) -> tuple[list[Point], Any]:
        matches = None if chosen is None else compile_filter(chosen)
        last, ids = start or "", list[str]()
        with self._using() as database:
            while len(ids) < size and (more := database.after_id(last, size - len(ids))):
                last = more[-1].id
                ids += [p.id for p in more if matches is None or matches(p.payload, p.id)]
            points = database.fetch(ids, payload=payload, tokens=tokens, vectors=vectors)
        return sorted(points, key=lambda point: point.id), last if len(ids) == size else None

    def orders(self, path: str) -> bool:  # noqa: ARG002 - the database orders by any
        self.check_open()
        return True

    def newest(
        self, fields: Sequence[str], start: Any, size: int, filter: Filter | None
    ) -> NewestPage:
        chosen = self.translate(filter)
        matches = None if chosen is None else compile_filter(chosen)
        ids: list[str] = []
        with self._using() as database:
            position = start
            while len(ids) < size:
                more = database.by_date(
                    fields, position, size - len(ids), indexed=not self.read_only
                )
                if not more:
                    break
                position = more[-1].position
                ids += [row.id for row in more if matches is None or matches(row.payload, row.id)]
            stored = database.fetch(ids, payload=True, tokens=False, vectors=False)
        by_id = {point.id: point for point in stored}
        points = [by_id[each] for each in ids if each in by_id]
        return NewestPage(points, position if len(ids) == size else None)

    def write(self, points: Sequence[CheckedPoint]) -> None:
        vectors = np.array([point.vector for point in points], np.float32)
        with self._writing() as database:
            replaced, rows = database.put(points, vectors)
            self._vectors = self._vectors.without(replaced).extended(rows, vectors)

    def update(self, points: Sequence[CheckedPoint]) -> None:
        with self._writes, self._using() as database:
            stored = database.rows_of([point.id for point in points])
            if found := [point for point in points if point.id in stored]:
                self.write(found)

    def set_payload(self, payloads: Sequence[CheckedPayload]) -> None:
        with self._writing() as database:
            database.set_payloads({item.id: item.payload for item in payloads})

    def remove_keys(self, ids: Sequence[str], paths: Sequence[str]) -> None:
        with self._writing() as database:  # a path of one key is that key, perhaps in quotes
            database.remove_keys(ids, [path.strip('"') for path in paths])

    def delete(self, ids: Sequence[str]) -> None:
        with self._writing() as database:
            self._delete(database, np.array([*database.rows_of(ids).values()], np.int64))

    def delete_matching(self, chosen: models.Filter) -> None:
        with self._writing() as database:
            self._delete(database, self._matching(database, chosen))

    def count(self, chosen: models.Filter | None) -> int:
        with self._using() as database:
            if chosen is None:
                return self._vectors.remaining
            return len(self._matching(database, chosen))

    def create_payload_index(self, path: str, kind: str) -> None:  # noqa: ARG002 - there are none
        self.check_open()

    def payload_indexes(self) -> dict[str, str]:
        self.check_open()
        return {}

    def optimize(self) -> None:
        """Free the memory of deleted vectors; for a moment there are two copies of the others."""
        with self._writes, self._using():
            if self._vectors.deleted is not None:
                self._vectors = self._vectors.compacted()

    @contextmanager
    def _writing(self) -> Iterator[Database]:
        with self._writes, self._using() as database:
            self._version += 1
            try:
                yield database
            finally:
                self._matches.clear()
                self._version += 1

    def _delete(self, database: Database, rows: Rows) -> None:
        database.delete(rows.tolist())
        self._vectors = self._vectors.without(rows)

    def _search(self, chosen: models.Filter | None, find: _Find) -> list[Hits]:
        """Read the points that `find` returns among the rows that match.

        A write at the same time may delete points that were found, or change what matches. Then
        this is repeated while nothing can be written.
        """
        with self._using() as database:
            for lock in (nullcontext(), self._writes):
                with lock:
                    version = self._version
                    rows = None if chosen is None else self._matching(database, chosen)
                    found = find(self._vectors, rows)
                    numbers = {row for hits in found for row, _ in hits}
                    points = database.points([*numbers])
                    undisturbed = version % 2 == 0 and version == self._version
                    if len(points) == len(numbers) and (chosen is None or undisturbed):
                        break
        return [
            [
                Found(points[row].id, score, points[row].payload)
                for row, score in hits
                if row in points
            ]
            for hits in found
        ]

    def _matching(self, database: Database, chosen: models.Filter) -> Rows:
        """Return the rows of the points that match a filter, ascending."""
        key = chosen.model_dump_json()
        version = self._version
        if (kept := self._matches.get(key)) is not None:
            return kept
        matches = compile_filter(chosen)
        pages = database.by_row(required_texts(chosen))
        found = [p.row for page in pages for p in page if matches(p.payload, p.id)]
        rows = np.array(found, np.int64)
        with self._writes:
            if version % 2 == 0 and version == self._version:  # nothing was written since
                self._matches[key] = rows
                if len(self._matches) > _KEPT_MATCHES:
                    del self._matches[next(iter(self._matches))]
        return rows
