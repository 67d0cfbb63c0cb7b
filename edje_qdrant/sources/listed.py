"""Lists of images that a Python program passes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from edje_qdrant.errors import ConfigError
from edje_qdrant.index import TOKENS_KEY
from edje_qdrant.sources.protocol import ImageSource, ListedImage, Listing
from edje_qdrant.types import Payload

__all__ = ["ListItem", "ListSource"]

#: An image of a list: a path, a path and its fields, or fields with a `path`.
ListItem: TypeAlias = "str | Path | tuple[str | Path, Payload] | Payload"


class ListSource(ImageSource):
    """The images of a list, or of a dict of paths to fields.

    An empty list is not an error, since it may be the outcome of a search.

    Raises:
        ConfigError: An item names no path, or its fields cannot be stored.
    """

    name = "the list of images"

    def __init__(self, items: Iterable[Any]) -> None:
        given = items.items() if isinstance(items, Mapping) else items
        self._images = [_list_item(item, number) for number, item in enumerate(given)]

    def images(self) -> Listing:
        """List the images."""
        return iter(self._images)

    def count(self) -> int:
        """Return the number of images."""
        return len(self._images)


def _list_item(item: Any, number: int) -> ListedImage:
    """Return an image of a list.

    Raises:
        ConfigError: The item names no path, or its fields cannot be stored.
    """
    path: Any = item
    fields: Any = {}
    if isinstance(item, Mapping):
        path, fields = item.get("path"), item
    elif isinstance(item, tuple | list) and len(item) == 2:
        path, fields = item
    if not isinstance(path, str | os.PathLike) or not isinstance(fields, Mapping):
        raise ConfigError(
            f"item {number} of the list of images is {_kinds(item)}; a list of images must hold "
            'paths, pairs (path, {"album": "2024"}), or dicts {"path": ..., "album": "2024"}'
        )
    if not os.fspath(path):
        raise ConfigError(f"item {number} of the list of images has an empty path")
    odd = [name for name in fields if not isinstance(name, str)]
    if odd:
        raise ConfigError(
            f"item {number} of the list of images has a field {odd[0]!r}; name fields by text"
        )
    if TOKENS_KEY in fields:
        raise ConfigError(
            f"item {number} of the list of images has the field {TOKENS_KEY!r}, which is reserved; "
            "rename it"
        )
    return ListedImage(os.path.abspath(path), fields)


def _kinds(item: Any) -> str:
    if isinstance(item, Mapping):
        return "a dict without a path"
    if isinstance(item, tuple | list):
        kinds = ", ".join(type(each).__name__ for each in item)
        return f"a {type(item).__name__} of {kinds or 'nothing'}"
    return f"of type {type(item).__name__}"
