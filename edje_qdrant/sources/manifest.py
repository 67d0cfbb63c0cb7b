"""Manifests: files whose lines name images, and may have fields of their payloads."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.images import error_reason
from edje_qdrant.index import TOKENS_KEY, json_integer
from edje_qdrant.sources.place import listed_at
from edje_qdrant.sources.protocol import FailedLine, ImageSource, ListedImage, Listing
from edje_qdrant.sources.remote import fetch
from edje_qdrant.sources.uris import is_uri, suffix_of

__all__ = ["MANIFEST_SUFFIXES", "ManifestSource"]

#: Files that are read as manifests.
MANIFEST_SUFFIXES = frozenset({".jsonl", ".ndjson", ".txt"})
# A manifest on a server is held in memory.
_MOST_BYTES = 1 << 30


class ManifestSource(ImageSource):
    """The images of a manifest: files, or addresses; paths are relative to its folder.

    A line of a `.jsonl` file is an object with `path`, or with `file_name` as in the data sets of
    the Hugging Face hub, and any fields. A line of a `.txt` file is a path. Lines that cannot be
    read are listed as failed, by their number.

    Args:
        place: The manifest: a file, or an address.
    """

    def __init__(self, place: str | Path) -> None:
        self.name = str(place)
        self._plain = suffix_of(self.name) == ".txt"

    def check(self) -> None:
        """Check that a line names an image; usually the first does, and no other line is read.

        Raises:
            ConfigError: No line does, as in a file of another kind.
        """
        first = None
        for line in self.images():
            if not isinstance(line, FailedLine):
                return
            first = first or line
        if first is not None:
            raise ConfigError(
                f"no line of the manifest {self.name} names an image; {first.path}: "
                f'{first.reason}. Each line must be an object such as {{"path": "a.jpg"}}'
            )

    def images(self) -> Listing:
        """List the manifest's lines."""
        remote = is_uri(self.name)
        folder = self.name if remote else os.path.dirname(os.path.abspath(self.name))
        read = _path_of if self._plain else _image_of
        try:
            with self._lines() as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield read(line, f"{self.name}:{number}", folder)
        except OSError as error:
            raise ConfigError(
                f"cannot read the manifest {self.name}: {error_reason(error)}"
            ) from error

    @contextmanager
    def _lines(self) -> Iterator[BinaryIO]:
        if not is_uri(self.name):
            with open(self.name, "rb") as file:
                yield file
            return
        try:
            content, _ = fetch(self.name, max_bytes=_MOST_BYTES)
        except ImageReadError as error:
            raise ConfigError(f"cannot read the manifest {self.name}: {error.reason}") from error
        yield io.BytesIO(content)


def _path_of(line: bytes, where: str, folder: str) -> ListedImage | FailedLine:
    try:
        return listed_at(line.decode("utf-8-sig").strip(), {}, folder)
    except (ConfigError, UnicodeDecodeError) as error:
        return FailedLine(where, error_reason(error))


def _image_of(line: bytes, where: str, folder: str) -> ListedImage | FailedLine:
    try:
        fields = json.loads(line.decode("utf-8-sig"), parse_int=json_integer)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        return FailedLine(where, f"no JSON: {error_reason(error)}")
    except ValueError as error:  # a number beyond 64 bits
        return FailedLine(where, str(error))
    path = fields.get("path", fields.get("file_name")) if isinstance(fields, dict) else None
    if not isinstance(fields, dict) or not isinstance(path, str):
        fields = [*map(repr, fields)][:6] if isinstance(fields, dict) else []
        has = f"; its fields are {', '.join(fields)}" if fields else ""
        return FailedLine(where, f'not an object with "path": text{has}')
    if not path:
        return FailedLine(where, "its path is empty")
    if TOKENS_KEY in fields:
        return FailedLine(where, f"the field {TOKENS_KEY!r} is reserved; rename it")
    try:
        return listed_at(path, fields, folder)
    except ConfigError as error:
        return FailedLine(where, str(error))
