"""Images in the rows of tables: which column holds them, and what the other columns say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

from edje_qdrant.errors import ConfigError
from edje_qdrant.index import TOKENS_KEY

__all__ = ["COLUMN_NAMES", "chosen_column", "image_bytes", "row_fields"]

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
