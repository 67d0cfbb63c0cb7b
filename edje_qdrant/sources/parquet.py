"""Images in the rows of Parquet files."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from edje_qdrant.errors import ConfigError, ImageReadError, MissingExtraError
from edje_qdrant.images import error_reason
from edje_qdrant.sources.protocol import Fetched, ImageSource, ListedImage, Listing
from edje_qdrant.sources.remote import RemoteFile, about
from edje_qdrant.sources.stamp import file_stamp
from edje_qdrant.sources.table import KeptOpen, chosen_column, image_bytes, row_fields
from edje_qdrant.sources.uris import is_uri_of_image, part_path
from edje_qdrant.types import FailedImage

if TYPE_CHECKING:
    import pyarrow.parquet as pq

__all__ = ["PARQUET_SUFFIXES", "ParquetSource", "opened_cells"]

#: Files that are read as tables.
PARQUET_SUFFIXES = frozenset({".parquet"})

# Rows of other columns read at a time, and of images; and batches of images that are kept, since
# threads ask for them in nearly the order of the rows.
_ROWS, _IMAGES, _KEPT_BATCHES = 1024, 16, 8
# Bytes of a column that are read at a time.
_BUFFER = 1 << 20


class ParquetSource(ImageSource):
    """The images in Parquet files, one file after the other, in the order of their rows.

    The other columns become fields of the payload, but those of bytes. Images are read when they
    are needed: not those that are stored already, if all of their row group are.

    Args:
        files: Paths or addresses of the files.
        column: The column of the images; by default the only one of bytes, or the one whose name
            says so (`COLUMN_NAMES`).

    Raises:
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(self, files: list[str], column: str | None = None) -> None:
        _pyarrow()
        self._files = [file if is_uri_of_image(file) else os.path.abspath(file) for file in files]
        self._column = column
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        self.name = f"{files[0]}{more}"
        self.scope = tuple(f"{file}#" for file in self._files)

    def images(self) -> Listing:
        """List the images; a file that cannot be read is listed as failed."""
        for file in self._files:
            try:
                yield from self._images(file)
            except ImageReadError as error:  # noqa: PERF203 - the other files are read
                yield FailedImage(file, error.reason)

    def count(self) -> int:
        """Return the number of rows."""
        total = 0
        for file in self._files:
            try:
                table = _Table(file)
            except ImageReadError:
                total += 1
                continue
            total += table.rows
            table.close()
        return total

    def _images(self, file: str) -> Listing:
        table = _Table(file)
        try:
            column = table.column(self._column)
            cells = _Cells(table, column)
            stamp = {name: value for name, value in table.stamp.items() if name != "file_size"}
            for number, row in enumerate(table.other_columns(column)):
                path = part_path(file, row=number, column=column)
                fields = row_fields(row, column, file)
                yield ListedImage(path, fields, reader=partial(cells.read, number), stamp=stamp)
        except ConfigError:  # a ValueError, too
            raise
        except (OSError, ValueError) as error:
            raise ImageReadError(file, error_reason(error)) from error


class _Table:
    """An open file.

    Raises:
        ImageReadError: It cannot be opened.
    """

    def __init__(self, file: str) -> None:
        parquet = _pyarrow()
        self.name = file
        try:
            opened: Any = file
            if is_uri_of_image(file):
                opened, found = RemoteFile.buffered(file)
                self.stamp = found.stamp
            else:
                self.stamp = file_stamp(file)
            self.file: pq.ParquetFile = parquet.ParquetFile(
                opened, buffer_size=_BUFFER, pre_buffer=False
            )
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            raise ImageReadError(file, error_reason(error)) from error
        self.rows: int = self.file.metadata.num_rows
        groups = range(self.file.metadata.num_row_groups)
        counts = [self.file.metadata.row_group(group).num_rows for group in groups]
        self.starts = np.cumsum([0, *counts])

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def column(self, asked: str | None) -> str:
        """Return the column of the images; see `chosen_column`."""
        schema = self.file.schema_arrow
        known = ", ".join(schema.names)
        found = [field.name for field in schema if _holds_bytes(field.type)]
        return chosen_column(found, asked, self.name, known)

    def other_columns(self, column: str) -> Iterator[Mapping[str, Any]]:
        """Yield the rows without the bytes of the images."""
        schema = self.file.schema_arrow
        columns = [field.name for field in schema if not _holds_bytes(field.type)]
        if _is_struct(schema.field(column).type) and "path" in _names(schema.field(column).type):
            columns.append(f"{column}.path")
        if not columns:
            yield from ({} for _ in range(self.rows))
            return
        for batch in self.file.iter_batches(batch_size=_ROWS, columns=columns):
            yield from batch.to_pylist()


class _Cells:
    """The images in a column, read forwards as long as they are asked for forwards. Thread-safe."""

    def __init__(self, table: _Table, column: str) -> None:
        schema = table.file.schema_arrow
        if column not in schema.names or not _holds_bytes(schema.field(column).type):
            raise ConfigError(f"{table.name} has no column {column!r} of images")
        self._table, self._column = table, column
        self._lock = threading.Lock()
        self._batches: Iterator[Any] = iter(())
        self._next = self._end = 0  # the next row of the batches, and the row where they end
        self._held: OrderedDict[int, Any] = OrderedDict()  # first row -> batch

    def read(self, row: int) -> Fetched:
        """Return the image of a row.

        Raises:
            ImageReadError: It cannot be read, or the row has none.
        """
        path = part_path(self._table.name, row=row, column=self._column)
        if not 0 <= row < self._table.rows:
            raise ImageReadError(path, f"{self._table.name} has {self._table.rows} rows")
        try:
            with self._lock:
                content = image_bytes(self._value(row))
        except (OSError, ValueError) as error:
            raise ImageReadError(path, error_reason(error)) from error
        if content is None:
            raise ImageReadError(path, "the row has no bytes of an image")
        return Fetched(content)

    def _value(self, row: int) -> Any:
        for first, batch in self._held.items():
            if first <= row < first + len(batch):
                return batch[row - first].as_py()
        if not self._next <= row < self._end:
            group = int(np.searchsorted(self._table.starts, row, side="right")) - 1
            self._next, self._end = map(int, self._table.starts[group : group + 2])
            self._batches = self._table.file.iter_batches(
                batch_size=_IMAGES, row_groups=[group], columns=[self._column]
            )
        while True:
            first, batch = self._next, next(self._batches).column(0)
            self._next += len(batch)
            self._held[first] = batch
            while len(self._held) > _KEPT_BATCHES:
                self._held.popitem(last=False)
            if row < self._next:
                return batch[row - first].as_py()


_open: KeptOpen[_Cells] = KeptOpen()


def opened_cells(file: str, column: str) -> _Cells:
    """Return the images of a file, which stays open while it is unchanged; see `read_row`.

    Raises:
        ImageReadError: It cannot be opened.
        ConfigError: It has no such column.
        MissingExtraError: pyarrow is not installed.
    """
    stamp = about(file).stamp if is_uri_of_image(file) else file_stamp(file)
    return _open.column(file, column, stamp, lambda: _Cells(_Table(file), column))


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet") from error
    return pyarrow.parquet


def _holds_bytes(kind: Any) -> bool:
    import pyarrow

    if _is_struct(kind):
        return "bytes" in _names(kind)
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _is_struct(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_struct(kind))


def _names(kind: Any) -> list[str]:
    return [kind.field(at).name for at in range(kind.num_fields)]
