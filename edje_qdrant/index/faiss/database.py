"""What a faiss index keeps for good: points, vectors and token bytes in one SQLite file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import StoreError
from edje_qdrant.index.batches import in_runs
from edje_qdrant.index.filters.field_paths import TOKEN_BYTES, TOKENS_KEY
from edje_qdrant.index.validate import CheckedPoint

__all__ = ["BuiltRecord", "Database", "Row"]

_FORMAT = 1
_TOKENS = TOKEN_BYTES.removeprefix(f"{TOKENS_KEY}.")

# Values in one statement, which older builds of SQLite keep below 1,000.
_VALUES = 900
_PAGE = 4096

# A row is a point's number, given once and never again: a point that is written again gets another,
# so that a number always means the same vector. Token bytes have a table of their own, and so have
# vectors, as filters go through payloads alone.
_TABLES = """
CREATE TABLE settings(kind TEXT NOT NULL, dim INTEGER NOT NULL);
CREATE TABLE points(
    row INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, payload TEXT NOT NULL);
CREATE TABLE vectors(row INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE tokens(row INTEGER PRIMARY KEY, tokens TEXT NOT NULL);
CREATE TABLE built(
    shape TEXT NOT NULL, digest TEXT NOT NULL, row_numbers BLOB NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class BuiltRecord:
    """Say what the file with the built index holds.

    Attributes:
        shape: `flat`, `ivf` or `hnsw`.
        digest: XXH3 of the file, 128 bits in hexadecimal digits.
        rows: `(n,)` int64, ascending: whose vectors are in it.
    """

    shape: str
    digest: str
    rows: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Row:
    """Hold a point as it is stored, without token bytes."""

    row: int
    id: str
    payload: dict[str, Any]


class Database:
    """Read and write the file; threads take turns.

    A transaction is on the disk when it ends: it survives a killed process, and a power cut.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, which `create` has made.

        Raises:
            StoreError: Another version wrote it, or it is damaged.
        """
        self._turn = RLock()
        self._connection = _connect(path)
        try:
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version != _FORMAT:
                raise StoreError(
                    f"{path} has format {version!r}, this version reads {_FORMAT}; open it with "
                    "the version that wrote it, or ingest again"
                )
            kind, dim = self._connection.execute("SELECT kind, dim FROM settings").fetchone()
            self.kind, self.dim = str(kind), int(dim)
            found = self._connection.execute("SELECT seq FROM sqlite_sequence").fetchone()
            self._last = found[0] if found else 0
        except BaseException:
            self._connection.close()
            raise

    @staticmethod
    def create(path: Path, dim: int, kind: str) -> None:
        """Make an empty file."""
        connection = _connect(path)
        try:
            connection.executescript(_TABLES)
            connection.execute("INSERT INTO settings VALUES (?, ?)", (kind, dim))
            connection.execute(f"PRAGMA user_version = {_FORMAT}")
        finally:
            connection.close()

    def close(self) -> None:
        """Write the log back into the file and let go of it."""
        with self._turn:
            self._connection.close()

    def rows_of(self, ids: Sequence[str]) -> dict[str, int]:
        """Return id -> row; unknown ids are left out."""
        return dict(self._among("SELECT id, row FROM points WHERE id IN", ids))

    def points(self, rows: Sequence[int]) -> dict[int, tuple[str, dict[str, Any]]]:
        """Return row -> id and payload, without token bytes; rows that are gone are left out."""
        found = self._among("SELECT row, id, payload FROM points WHERE row IN", rows)
        return {row: (image_id, json.loads(payload)) for row, image_id, payload in found}

    def payloads(self, ids: Sequence[str], *, tokens: bool) -> dict[str, dict[str, Any]]:
        """Return id -> payload, with or without token bytes; unknown ids are left out."""
        if not tokens:
            found = self._among("SELECT id, payload FROM points WHERE id IN", ids)
            return {image_id: json.loads(payload) for image_id, payload in found}
        whole = self._among(
            "SELECT id, payload, tokens FROM points LEFT JOIN tokens USING (row) WHERE id IN", ids
        )
        return {image_id: _joined(payload, bytes_) for image_id, payload, bytes_ in whole}

    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Return id -> `(d,)` vector; unknown ids are left out."""
        found = self._among(
            "SELECT id, vector FROM points JOIN vectors USING (row) WHERE id IN", ids
        )
        return {image_id: np.frombuffer(data, np.float32).copy() for image_id, data in found}

    def by_row(self, values: Sequence[Sequence[str]] = ()) -> Iterator[list[Row]]:
        """Yield points in pages, in order of row; what is written meanwhile may be missed.

        Args:
            values: Texts of which a payload must hold one, of each of these lists, to be of use;
                all that do are among the points, and perhaps others.
        """
        # An equal text is written in the same way, so looking for it takes no parsing.
        holds = [" OR ".join(["instr(payload, ?)"] * len(texts)) for texts in values]
        where = "".join(f" AND ({texts})" for texts in holds)
        wanted = [_text(text) for texts in values for text in texts]
        last = 0
        while page := self._page("row", last, _PAGE, where, wanted):
            yield page
            last = page[-1].row

    def after_id(self, last: str, limit: int) -> list[Row]:
        """Return the next `limit` points in order of id."""
        return self._page("id", last, limit)

    def row_numbers(self) -> NDArray[np.int64]:
        """Return every point's row, ascending."""
        with self._turn:
            found = self._connection.execute("SELECT row FROM points").fetchall()
        return np.sort(np.array(found, np.int64).reshape(-1))

    def vectors_after(self, last: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield `(n,)` rows above `last`, ascending, and their `(n, d)` vectors, in pages."""
        query = "SELECT row, vector FROM vectors WHERE row > ? ORDER BY row LIMIT ?"
        while True:
            with self._turn:
                found = self._connection.execute(query, (last, _PAGE)).fetchall()
            if not found:
                return
            rows = np.array([row for row, _ in found], np.int64)
            data = np.frombuffer(b"".join(vector for _, vector in found), np.float32)
            yield rows, data.reshape(len(rows), self.dim)
            last = int(rows[-1])

    def put(
        self, points: Sequence[CheckedPoint], vectors: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Write points; return the rows that are gone, and the new ones in the points' order."""
        rows = np.arange(self._last + 1, self._last + 1 + len(points), dtype=np.int64)
        parts = [_split(point.payload) for point in points]
        numbers = rows.tolist()
        with self._transaction() as connection:
            gone = [*self.rows_of([point.id for point in points]).values()]
            self._remove(gone)
            connection.executemany(
                "INSERT INTO points VALUES (?, ?, ?)",
                [
                    (row, point.id, payload)
                    for row, point, (payload, _) in zip(numbers, points, parts, strict=True)
                ],
            )
            connection.executemany(
                "INSERT INTO vectors VALUES (?, ?)",
                [(row, vector.tobytes()) for row, vector in zip(numbers, vectors, strict=True)],
            )
            self._put_tokens((row, tokens) for row, (_, tokens) in zip(numbers, parts, strict=True))
        self._last += len(points)
        return np.array(gone, np.int64), rows

    def set_payloads(self, payloads: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Set keys of the payloads of those points that are stored, each value whole."""
        given = dict(payloads)
        with self._transaction() as connection:
            found = self._among("SELECT id, row, payload FROM points WHERE id IN", [*given])
            for image_id, row, text in found:
                payload, tokens = _split({**json.loads(text), **given[image_id]})
                connection.execute("UPDATE points SET payload = ? WHERE row = ?", (payload, row))
                if TOKENS_KEY in given[image_id]:
                    connection.execute("DELETE FROM tokens WHERE row = ?", (row,))
                    self._put_tokens([(row, tokens)])

    def remove_keys(self, ids: Sequence[str], keys: Sequence[str]) -> None:
        """Remove top-level keys from the payloads of those points that are stored."""
        with self._transaction() as connection:
            found = self._among("SELECT row, payload FROM points WHERE id IN", ids)
            for row, text in found:
                payload = {key: value for key, value in json.loads(text).items() if key not in keys}
                connection.execute(
                    "UPDATE points SET payload = ? WHERE row = ?", (_text(payload), row)
                )
                if TOKENS_KEY in keys:
                    connection.execute("DELETE FROM tokens WHERE row = ?", (row,))

    def delete(self, rows: Sequence[int]) -> None:
        """Remove points."""
        with self._transaction():
            self._remove(rows)

    def built(self) -> BuiltRecord | None:
        """Return what the file with the built index should hold; None if none was built."""
        with self._turn:
            found = self._connection.execute(
                "SELECT shape, digest, row_numbers FROM built"
            ).fetchone()
        if found is None:
            return None
        shape, digest, rows = found
        return BuiltRecord(shape, digest, np.frombuffer(rows, np.int64))

    def set_built(self, record: BuiltRecord | None) -> None:
        """Keep what the file with the built index holds from now on; None if there is none."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM built")
            if record is not None:
                connection.execute(
                    "INSERT INTO built VALUES (?, ?, ?)",
                    (record.shape, record.digest, record.rows.tobytes()),
                )

    def _page(
        self, key: str, last: int | str, limit: int, where: str = "", more: Sequence[str] = ()
    ) -> list[Row]:
        query = f"SELECT row, id, payload FROM points WHERE {key} > ?{where} ORDER BY {key} LIMIT ?"
        with self._turn:
            found = self._connection.execute(query, (last, *more, limit)).fetchall()
        return [Row(row, image_id, json.loads(payload)) for row, image_id, payload in found]

    def _among(self, query: str, values: Sequence[Any]) -> list[Any]:
        found: list[Any] = []
        with self._turn:
            for run in in_runs([*values], _VALUES):
                marks = ", ".join("?" * len(run))
                found += self._connection.execute(f"{query} ({marks})", run).fetchall()
        return found

    def _remove(self, rows: Sequence[int]) -> None:
        for table in ("points", "vectors", "tokens"):
            self._connection.executemany(
                f"DELETE FROM {table} WHERE row = ?", [(row,) for row in rows]
            )

    def _put_tokens(self, tokens: Iterable[tuple[int, str | None]]) -> None:
        given = [(row, text) for row, text in tokens if text is not None]
        self._connection.executemany("INSERT INTO tokens VALUES (?, ?)", given)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._turn:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        # Alone with the file, SQLite needs no memory map for its log, where a full disk would end
        # the process.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _split(payload: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the payload as text without token bytes, and those, if it has some."""
    kept = payload.get(TOKENS_KEY)
    if not isinstance(kept, dict) or _TOKENS not in kept:
        return _text(payload), None
    rest = {key: value for key, value in kept.items() if key != _TOKENS}
    return _text({**payload, TOKENS_KEY: rest}), _text(kept[_TOKENS])


def _joined(text: str, tokens: str | None) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(text)
    if tokens is not None:
        payload[TOKENS_KEY][_TOKENS] = json.loads(tokens)
    return payload


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
