"""Manifests: JSON lines, each with the path of an image and fields of its payload."""

from __future__ import annotations

import json
import os
from pathlib import Path

from edje_qdrant.errors import ConfigError
from edje_qdrant.images import error_reason
from edje_qdrant.index import TOKENS_KEY, json_integer
from edje_qdrant.sources.protocol import FailedLine, ImageSource, ListedImage, Listing

__all__ = ["MANIFEST_SUFFIXES", "ManifestSource"]

#: Files that are read as manifests.
MANIFEST_SUFFIXES = frozenset({".jsonl", ".ndjson"})


class ManifestSource(ImageSource):
    """The images of a manifest; paths are relative to its folder.

    Lines that cannot be read are listed as failed, by their number.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

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
                f"no line of the manifest {self._path} names an image; {first.path}: "
                f'{first.reason}. Each line must be an object such as {{"path": "a.jpg"}}'
            )

    def images(self) -> Listing:
        """List the manifest's lines."""
        path = self._path
        try:
            with path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield _image_of(line, f"{path}:{number}", path.parent)
        except OSError as error:
            raise ConfigError(f"cannot read the manifest {path}: {error_reason(error)}") from error


def _image_of(line: bytes, where: str, folder: Path) -> ListedImage | FailedLine:
    try:
        fields = json.loads(line.decode("utf-8-sig"), parse_int=json_integer)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        return FailedLine(where, f"no JSON: {error_reason(error)}")
    except ValueError as error:  # a number beyond 64 bits
        return FailedLine(where, str(error))
    if not isinstance(fields, dict) or not isinstance(fields.get("path"), str):
        fields = [*map(repr, fields)][:6] if isinstance(fields, dict) else []
        has = f"; its fields are {', '.join(fields)}" if fields else ""
        return FailedLine(where, f'not an object with "path": text{has}')
    if not fields["path"]:
        return FailedLine(where, "its path is empty")
    if TOKENS_KEY in fields:
        return FailedLine(where, f"the field {TOKENS_KEY!r} is reserved; rename it")
    return ListedImage(os.path.abspath(os.path.join(folder, fields["path"])), fields)
