"""Listing of the images in a folder, a manifest or a list of paths, without opening them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edje_qdrant.errors import ConfigError
from edje_qdrant.files import kind_of
from edje_qdrant.images import error_reason
from edje_qdrant.index import TOKENS_KEY, json_integer
from edje_qdrant.types import FailedImage, Payload

__all__ = ["IMAGE_SUFFIXES", "ListedImage", "Source", "check_source", "list_images"]

#: An image of a list: a path, a path and its fields, or fields with a `path`.
ListItem = str | Path | tuple[str | Path, Payload] | Payload

#: A folder, an image, a JSONL manifest, a list of images, or path -> fields.
Source = str | Path | Sequence[ListItem] | Mapping[str, Payload]

#: Files in a folder that count as images.
IMAGE_SUFFIXES = frozenset({
    ".arw", ".avif", ".bmp", ".cr2", ".cr3", ".dng", ".gif", ".heic", ".heif", ".hif", ".ico",
    ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".mpo", ".nef", ".nrw", ".orf",
    ".pbm", ".pef", ".pgm", ".png", ".pnm", ".ppm", ".raf", ".rw2", ".srw", ".tif", ".tiff",
    ".webp",
})  # fmt: skip
_MANIFEST_SUFFIXES = frozenset({".jsonl", ".ndjson"})


@dataclass(frozen=True, slots=True)
class ListedImage:
    """Hold an image's path and the user's fields.

    Attributes:
        path: Absolute path; any name if `content` is given.
        fields: Fields of the image's manifest line or list item; empty if there are none.
        content: The file's bytes, if they were read already.
    """

    path: str
    fields: Payload
    content: bytes | None = field(default=None, repr=False)


Listing = Iterator[ListedImage | FailedImage]


def check_source(source: Source) -> None:
    """Check that a source can be read and is not empty.

    Raises:
        ConfigError: The source is missing, unreadable or empty.
    """
    list_images(source)


def list_images(source: Source) -> Callable[[], Listing]:
    """Return a function that lists the source from its start at each call.

    The list is not held in memory. A folder is searched recursively, in order of names; hidden
    files and folders are left out and links to folders are not followed. Manifest lines and
    folders that cannot be read are listed as failed. An empty list of paths is not an error, since
    it may be the outcome of a search.

    Raises:
        ConfigError: The source is missing, unreadable or empty.
    """
    if not isinstance(source, str | os.PathLike):
        if not isinstance(source, Iterable):
            raise ConfigError(
                f"source is {source!r}; give a folder, a file, a manifest or a list of paths"
            )
        given: Iterable[Any] = source.items() if isinstance(source, Mapping) else source
        items = [source] if isinstance(source, bytes) else list(given)
        images = [_list_item(item, number) for number, item in enumerate(items)]
        return lambda: iter(images)
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    kind = kind_of(path, ConfigError)
    if kind == "folder":
        return _not_empty(lambda: _folder(path), f"the folder {path} holds no image")
    if kind == "file" and suffix in _MANIFEST_SUFFIXES:
        return _not_empty(lambda: _manifest(path), f"the manifest {path} holds no line")
    if kind == "file" and suffix in IMAGE_SUFFIXES:
        return lambda: iter([ListedImage(os.path.abspath(path), {})])
    what = "is no folder, image or manifest" if kind is not None else "does not exist"
    raise ConfigError(
        f'{path} {what}; give a folder of images, or a .jsonl file, each line an object with "path"'
    )


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


def _not_empty(listing: Callable[[], Listing], otherwise: str) -> Callable[[], Listing]:
    if next(listing(), None) is None:
        known = " ".join(sorted(IMAGE_SUFFIXES))
        raise ConfigError(f"{otherwise}; give a source with images ({known})")
    return listing


def _folder(folder: Path) -> Listing:
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise ConfigError(f"cannot read the folder {folder}: {error_reason(error)}") from error
    unreadable: list[OSError] = []
    for here, folders, names in os.walk(os.path.abspath(folder), onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield ListedImage(os.path.join(here, name), {})
    yield from (FailedImage(str(error.filename), error_reason(error)) for error in unreadable)


def _manifest(path: Path) -> Listing:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _manifest_line(line, f"{path}:{number}", path.parent)
    except OSError as error:
        raise ConfigError(f"cannot read the manifest {path}: {error_reason(error)}") from error


def _manifest_line(line: bytes, where: str, folder: Path) -> ListedImage | FailedImage:
    try:
        fields = json.loads(line.decode("utf-8-sig"), parse_int=json_integer)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        return FailedImage(where, f"no JSON: {error_reason(error)}")
    except ValueError as error:  # a number beyond 64 bits
        return FailedImage(where, str(error))
    if not isinstance(fields, dict) or not isinstance(fields.get("path"), str):
        return FailedImage(where, 'not an object with "path": text')
    if not fields["path"]:
        return FailedImage(where, "its path is empty")
    if TOKENS_KEY in fields:
        return FailedImage(where, f"the field {TOKENS_KEY!r} is reserved; rename it")
    return ListedImage(os.path.abspath(os.path.join(folder, fields["path"])), fields)
