"""Lists of images that a Python program passes."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.images import image_bytes_id, open_upright
from edje_qdrant.index import TOKENS_KEY
from edje_qdrant.sources.place import listed_at
from edje_qdrant.sources.protocol import ImageSource, ListedImage, Listing
from edje_qdrant.sources.uris import in_memory_path
from edje_qdrant.types import FailedImage, Payload

__all__ = ["ListItem", "ListSource"]

#: An image of a list: a path, an address, the bytes of a file or a Pillow image; one of these and
#: its fields; or fields with a `path`.
ListItem: TypeAlias = (
    "str | Path | bytes | Image.Image | tuple[str | Path | bytes | Image.Image, Payload] | Payload"
)


@dataclass(frozen=True, slots=True)
class _InMemory:
    """An image that the program passed itself."""

    image: bytes | Image.Image
    fields: Payload
    number: int


class ListSource(ImageSource):
    """The images of a list, or of a dict of paths to fields.

    An empty list is not an error, since it may be the outcome of a search. The path of an image
    that is passed as bytes or as a Pillow image is `memory:` and its id, or the `path` among its
    fields.

    Raises:
        ConfigError: An item names no image, or its fields cannot be stored.
    """

    name = "the list of images"

    def __init__(self, items: Iterable[Any]) -> None:
        given = items.items() if isinstance(items, Mapping) else items
        self._items = [_list_item(item, number) for number, item in enumerate(given)]

    def images(self) -> Listing:
        """List the images."""
        for item in self._items:
            yield _listed(item) if isinstance(item, _InMemory) else item

    def count(self) -> int:
        """Return the number of images."""
        return len(self._items)


def _listed(item: _InMemory) -> ListedImage | FailedImage:
    name = f"item {item.number} of the list of images"
    try:
        content = item.image if isinstance(item.image, bytes) else _file_of(item.image, name)
        path = item.fields.get("path") or in_memory_path(image_bytes_id(content, name))
    except ImageReadError as error:
        return FailedImage(name, error.reason)
    # The size of what is made of a Pillow image says nothing about the image.
    stamp = {} if isinstance(item.image, bytes) else {"file_size": None}
    return ListedImage(str(path), item.fields, content, stamp=stamp)


def _file_of(image: Image.Image, name: str) -> bytes:
    """Return a file of an image whose bytes, and so its id, depend on its pixels alone."""
    file = io.BytesIO()
    open_upright(image, name).save(file, "PPM")
    return file.getvalue()


def _list_item(item: Any, number: int) -> ListedImage | _InMemory:
    """Return an image of a list.

    Raises:
        ConfigError: The item names no image, or its fields cannot be stored.
    """
    image: Any = item
    fields: Any = {}
    if isinstance(item, Mapping):
        image, fields = item.get("path"), item
    elif isinstance(item, tuple | list) and len(item) == 2:
        image, fields = item
    if isinstance(image, bytearray | memoryview):
        image = bytes(image)
    if not isinstance(image, str | os.PathLike | bytes | Image.Image) or not isinstance(
        fields, Mapping
    ):
        raise ConfigError(
            f"item {number} of the list of images is {_kinds(item)}; a list of images must hold "
            "paths, addresses, bytes of files or Pillow images, pairs of one of these and a dict "
            '(path, {"album": "2024"}), or dicts {"path": ..., "album": "2024"}'
        )
    if not isinstance(image, bytes | Image.Image) and not os.fspath(image):
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
    if isinstance(image, bytes | Image.Image):
        if not isinstance(fields.get("path", ""), str):
            raise ConfigError(f"item {number} of the list of images has a path that is no text")
        return _InMemory(image, fields, number)
    try:
        return listed_at(os.fspath(image), fields)
    except ConfigError as error:
        raise ConfigError(f"item {number} of the list of images: {error}") from error


def _kinds(item: Any) -> str:
    if isinstance(item, Mapping):
        return "a dict without a path"
    if isinstance(item, tuple | list):
        kinds = ", ".join(type(each).__name__ for each in item)
        return f"a {type(item).__name__} of {kinds or 'nothing'}"
    return f"of type {type(item).__name__}"
