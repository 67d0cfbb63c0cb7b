"""Images in the rows of tables: which column holds them, what the others say, reading one row."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from typing import Any, Generic, Protocol, TypeVar

from edje_qdrant.errors import ConfigError, ImageReadError, MissingExtraError
from edje_qdrant.images import MAX_FILE_BYTES
from edje_qdrant.index import TOKENS_KEY
from edje_qdrant.sources.protocol import Fetched
from edje_qdrant.sources.remote_store import too_large
from edje_qdrant.sources.uris import part_path

__all__ = ["COLUMN_NAMES", "KeptOpen", "chosen_column", "image_bytes", "read_row", "row_fields"]

#: Names of columns of images that are taken before others.
COLUMN_NAMES = (
    "image",
    "img",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "picture",
    "photo",
    "bytes",
    "content",
)


class _Column(Protocol):
    """An open column of images."""

    def read(self, row: int, /) -> Fetched: ...


C = TypeVar("C", bound=_Column)

# Tables that are kept open, of each kind.
_KEPT = 4


class KeptOpen(Generic[C]):
    """The columns that were used last, which stay open for the next row. Thread-safe."""

    def __init__(self) -> None:
        self._columns: OrderedDict[tuple[str, str, str], C] = OrderedDict()
        self._lock = threading.Lock()

    def column(
        self, container: str, column: str, stamp: Mapping[str, Any], make: Callable[[], C]
    ) -> C:
        """Return an open column; `make` opens it, also if the container has changed since."""
        key = container, column, repr(stamp)
        with self._lock:
            if key not in self._columns:
                self._columns[key] = make()
                while len(self._columns) > _KEPT:
                    self._columns.popitem(last=False)
            self._columns.move_to_end(key)
            return self._columns[key]


def read_row(
    container: str,
    row: str,
    column: str,
    opened: Callable[[str, str], _Column],
    max_bytes: int = MAX_FILE_BYTES,
) -> bytes:
    """Return the bytes of the image in a row of a table.

    Args:
        container: The file or the folder of the table.
        row: The number of the row.
        column: The name of the column.
        opened: Opens a column of a container.
        max_bytes: Larger images are refused.

    Raises:
        ImageReadError: It cannot be read, or there is no such row or column.
    """
    path = part_path(container, row=row, column=column)
    if not row.isdecimal():
        raise ImageReadError(path, f"{row!r} is no number of a row")
    try:
        content = opened(container, column).read(int(row)).content
    except (ConfigError, MissingExtraError) as error:
        raise ImageReadError(path, str(error)) from error
    except ImageReadError as error:
        raise ImageReadError(path, error.reason) from error
    if len(content) > max_bytes:
        raise too_large(path, len(content), max_bytes)
    return content


def chosen_column(columns: Iterable[str], asked: str | None, where: str, known: str) -> str:
    """Return the column that holds the images.

    Args:
        columns: The columns that can hold images.
        asked: The column that the user named.
        where: Names the table in errors.
        known: All columns of the table, for the message.

    Raises:
        ConfigError: There is none, or there are several.
    """
    found = [*columns]
    if asked is not None:
        if asked in found:
            return asked
        raise ConfigError(f"the column {asked!r} of {where} holds no images; it has {known}")
    if len(found) == 1:
        return found[0]
    for name in COLUMN_NAMES:
        if name in found:
            return name
    if not found:
        raise ConfigError(
            f"{where} has no column of images, that is of bytes, or of objects with `bytes`; it "
            f"has {known}"
        )
    raise ConfigError(
        f"{where} has several columns of images: {', '.join(found)}; name one: "
        f"{where}#column={found[0]}"
    )


def image_bytes(value: Any) -> bytes | None:
    """Return the bytes of a cell: bytes, or an object with `bytes`; None if it has none."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
    return value if isinstance(value, bytes) else None


def row_fields(row: Mapping[str, Any], column: str, where: str) -> dict[str, Any]:
    """Return the fields of the payload that a row's other columns give; bytes are left out.

    The name of the file in a column of images becomes `file_name`, unless a column has this name.

    Raises:
        ConfigError: A column has the reserved name.
    """
    if TOKENS_KEY in row:
        raise ConfigError(f"{where} has the column {TOKENS_KEY!r}, which is reserved; rename it")
    fields = {name: _stored(value) for name, value in row.items() if name != column}
    image = row.get(column)
    if isinstance(image, Mapping) and isinstance(image.get("path"), str) and image["path"]:
        fields.setdefault("file_name", image["path"])
    return {name: value for name, value in fields.items() if value is not None}


def _stored(value: Any) -> Any:
    """Return a value as it is stored; None for what cannot be: bytes, and numbers that are none."""
    if isinstance(value, Mapping):
        return {str(key): each for key, one in value.items() if (each := _stored(one)) is not None}
    if isinstance(value, list | tuple):
        return [each for one in value if (each := _stored(one)) is not None]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | bool | int | date) else None
