"""Points, vectors and token bytes in one SQLite file."""

from __future__ import annotations

import hashlib
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

from edje_qdrant.errors import ConfigError, StoreError
from edje_qdrant.index.backend import NO_VECTOR
from edje_qdrant.index.batches import in_runs
from edje_qdrant.index.filters.field_paths import TOKEN_BYTES, TOKENS_KEY
from edje_qdrant.index.validate import CheckedPoint
from edje_qdrant.types import Point

__all__ = ["Database", "DatedRow", "Row"]

_FORMAT = 1
_TOKENS = TOKEN_BYTES.removeprefix(f"{TOKENS_KEY}.")

# Values in one statement, which older builds of SQLite keep below 1,000.
_VALUES = 900
_PAGE = 4096

# A row is a point's number, never used twice: a point that is written again gets another, so that a
# number always means the same vector. Token bytes and vectors have tables of their own, as filters
# read only payloads. `kind` and `built` are for earlier versions, which read them.
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
class Row:
    """A stored point, without vector and token bytes."""

    row: int
    id: str
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DatedRow(Row):
    """A stored point, and its place among the points in order of date."""

    position: list[Any]


class Database:
    """Reads and writes the file, one thread at a time.

    A transaction is on the disk when it ends: it survives a killed process and a power cut.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open the file, which `create` has made.

        Raises:
            StoreError: Another version wrote it, it is damaged, or it may only be read and its last
                writer was killed.
        """
        self._lock = RLock()
        self._orders: set[str] = set()  # by which there is an index of dates
        self._connection = _connect_to_read(path) if read_only else _connect(path)
        try:
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version != _FORMAT:
                raise StoreError(
                    f"{path} has format {version!r}, this version reads {_FORMAT}; open it with "
                    "the version that wrote it, or ingest again"
                )
            (self.dim,) = self._connection.execute("SELECT dim FROM settings").fetchone()
            found = self._connection.execute("SELECT seq FROM sqlite_sequence").fetchone()
            self._last = found[0] if found else 0
        except BaseException:
            self._connection.close()
            raise

    @staticmethod
    def create(path: Path, dim: int) -> None:
        """Make an empty file."""
        connection = _connect(path)
        try:
            connection.executescript(_TABLES)
            connection.execute("INSERT INTO settings VALUES ('flat', ?)", (dim,))
            connection.execute(f"PRAGMA user_version = {_FORMAT}")
        finally:
            connection.close()

    def close(self) -> None:
        """Write the log back into the file and close it."""
        with self._lock:
            self._connection.close()

    def rows_of(self, ids: Sequence[str]) -> dict[str, int]:
        """Return id -> row; unknown ids are left out."""
        return dict(self._among("SELECT id, row FROM points WHERE id IN", ids))

    def points(self, rows: Sequence[int]) -> dict[int, Row]:
        """Return row -> point; rows that are deleted are left out."""
        found = self._among("SELECT row, id, payload FROM points WHERE row IN", rows)
        return {row: Row(row, point_id, json.loads(payload)) for row, point_id, payload in found}

    def fetch(
        self, ids: Sequence[str], *, payload: bool, tokens: bool, vectors: bool
    ) -> list[Point]:
        """Read points by id; unknown ids are left out."""
        query = (
            f"SELECT id, {'payload' if payload else 'NULL'}, "
            f"{'tokens' if payload and tokens else 'NULL'}, {'vector' if vectors else 'NULL'} "
            f"FROM points {'LEFT JOIN tokens USING (row)' if payload and tokens else ''} "
            f"{'JOIN vectors USING (row)' if vectors else ''} WHERE id IN"
        )
        return [
            Point(
                point_id,
                np.frombuffer(data, np.float32).copy() if vectors else NO_VECTOR,
                _joined(text, token_bytes) if payload else {},
            )
            for point_id, text, token_bytes, data in self._among(query, ids)
        ]

    def by_row(self, values: Sequence[Sequence[str]] = ()) -> Iterator[list[Row]]:
        """Yield points in pages, in order of row; what is written between pages may be missed.

        Args:
            values: Lists of texts, of each of which a payload must contain one; all points with
                such payloads are returned, and perhaps others.
        """
        # An equal text has the same JSON, so a search for it needs no parsing.
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

    def by_date(
        self, fields: Sequence[str], start: Any, limit: int, *, indexed: bool
    ) -> list[DatedRow]:
        """Return the next `limit` points, latest first, then those without a date.

        Args:
            fields: Top-level fields, of which the first with a date counts.
            start: None, or the position of the point before.
            limit: Points to return, at most.
            indexed: Make an SQLite index of the dates if there is none: without one, each call
                sorts all points.

        Raises:
            ConfigError: `start` is not a position.
        """
        date, last = _position(start)
        order = _order_of(fields)
        # Two reads, as SQLite uses no index for the comparison of pairs in two directions.
        reads = [(f"{order} = ? AND id > ?", (date, last)), (f"{order} < ?", (date,))]
        found: list[Any] = []
        with self._lock:
            if indexed:
                self._index_dates(order)
            for where, values in reads[1:] if start is None else reads:
                found += self._connection.execute(
                    f"SELECT row, id, payload, {order} FROM points WHERE {where} "
                    f"ORDER BY {order} DESC, id LIMIT ?",
                    (*values, limit - len(found)),
                ).fetchall()
        return [
            DatedRow(row, point_id, json.loads(payload), [day, point_id])
            for row, point_id, payload, day in found
        ]

    def _index_dates(self, order: str) -> None:
        if order in self._orders:
            return
        name = f"dates_{hashlib.sha256(order.encode()).hexdigest()[:16]}"
        self._connection.execute(f"CREATE INDEX IF NOT EXISTS {name} ON points({order} DESC, id)")
        self._orders.add(order)

    def count(self) -> int:
        """Return the number of points."""
        with self._lock:
            (count,) = self._connection.execute("SELECT count(*) FROM points").fetchone()
        return int(count)

    def all_vectors(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield `(n,)` rows, ascending, and their `(n, d)` vectors, in pages."""
        query = "SELECT row, vector FROM vectors WHERE row > ? ORDER BY row LIMIT ?"
        last = 0
        while True:
            with self._lock:
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
        """Write points; return the rows replaced, and the new ones in the points' order."""
        rows = np.arange(self._last + 1, self._last + 1 + len(points), dtype=np.int64)
        parts = [_split(point.payload) for point in points]
        numbers = rows.tolist()
        with self._transaction() as connection:
            replaced = [*self.rows_of([point.id for point in points]).values()]
            self._remove(replaced)
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
        return np.array(replaced, np.int64), rows

    def set_payloads(self, given: Mapping[str, Mapping[str, Any]]) -> None:
        """Set keys of the payloads of those points that are stored, each value whole."""
        with self._transaction() as connection:
            found = self._among("SELECT id, row, payload FROM points WHERE id IN", [*given])
            for point_id, row, text in found:
                payload, tokens = _split({**json.loads(text), **given[point_id]})
                connection.execute("UPDATE points SET payload = ? WHERE row = ?", (payload, row))
                if TOKENS_KEY in given[point_id]:
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

    def _page(
        self, key: str, last: int | str, limit: int, where: str = "", more: Sequence[str] = ()
    ) -> list[Row]:
        query = f"SELECT row, id, payload FROM points WHERE {key} > ?{where} ORDER BY {key} LIMIT ?"
        with self._lock:
            found = self._connection.execute(query, (last, *more, limit)).fetchall()
        return [Row(row, point_id, json.loads(payload)) for row, point_id, payload in found]

    def _among(self, query: str, values: Sequence[Any]) -> list[Any]:
        found: list[Any] = []
        with self._lock:
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
        with self._lock:
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
        # With exclusive access, SQLite needs no memory map for its log, where a full disk would
        # kill the process.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_to_read(path: Path) -> sqlite3.Connection:
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:
        raise StoreError(
            f"{path} was not closed by its last writer, and this user may not write the rest of "
            "its log into it; open it once as a user who may, or copy the folder"
        )
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?immutable=1", uri=True, isolation_level=None,
        check_same_thread=False,
    )  # fmt: skip


def _order_of(fields: Sequence[str]) -> str:
    """Return an expression of the first of several fields with a date, in days; -1 without one."""
    days: list[str] = []
    for field in fields:
        path = "$." + json.dumps(field.strip('"'))
        text = f"json_extract(payload, {_quoted(path)})"
        # Other texts have meanings of their own to julianday, such as "now".
        days.append(f"CASE WHEN {text} LIKE '____-__-__%' THEN julianday({text}) END")
    return f"coalesce({', '.join([*days, 'NULL'])}, -1)"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _position(start: Any) -> tuple[float, str]:
    if start is None:
        return float("inf"), ""
    try:
        date, last = start
        if isinstance(date, int | float) and isinstance(last, str):
            return date, last
    except (TypeError, ValueError):
        pass
    raise ConfigError("the position is not of this list; start from the first page")


def _split(payload: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the payload without token bytes as JSON, and the token bytes, if it has some."""
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
