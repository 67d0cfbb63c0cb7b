"""Image files and thumbnails of a collection, served from one folder only."""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images.content_ids import MAX_FILE_BYTES
from edje_qdrant.images.decoder_pool import DecodedFile, DecoderPool
from edje_qdrant.images.formats import open_listed
from edje_qdrant.images.thumbnail import Thumbnail, ThumbnailFormat

__all__ = ["ImageFolder", "ServedFile", "Thumbnails"]

# Formats that browsers display and that cannot contain scripts.
_SHOWN = {
    "AVIF": "image/avif",
    "BMP": "image/bmp",
    "GIF": "image/gif",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
}
# Do not follow links or block on pipes, on systems that have these flags.
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_FLAGS |= getattr(os, "O_BINARY", 0)
_ENTRY_OVERHEAD = 4096  # upper bound of a cache entry's bytes beside its image


@dataclass(frozen=True, slots=True)
class ServedFile:
    """Bytes of an image file and their media type."""

    data: bytes
    media_type: str


class ImageFolder:
    """Access to the image files of a collection that lie in one folder.

    Links are resolved; a path that leads outside the folder counts as missing.

    Args:
        root: The folder; None serves no images.
        decoders: Processes that decode images.
        max_bytes: Size limit of a file that is sent unchanged.
    """

    def __init__(
        self, root: Path | None, decoders: DecoderPool, *, max_bytes: int = 64 << 20
    ) -> None:
        self._root = None if root is None else os.path.realpath(root)
        # As it was given, too, which is how an ingest may have stored it.
        self._roots = (
            () if root is None else (os.path.realpath(root), str(root), os.path.abspath(root))
        )
        self._decoders, self._max_bytes = decoders, max_bytes

    def shown(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Return a payload whose `path` is relative to the folder and hides its parents."""
        path = payload.get("path")
        if not isinstance(path, str):
            return dict(payload)
        return {**payload, "path": self._relative(path) or os.path.basename(path)}

    def stored_paths(self, path: str) -> list[str]:
        """Return the paths that a payload may hold for a path as it is stored or as it is shown."""
        if self._root is None or os.path.isabs(path) or self._relative(path) is None:
            return [path]
        return [path, *dict.fromkeys(os.path.join(root, path) for root in self._roots)]

    def has(self, payload: Mapping[str, Any]) -> bool:
        """Return whether the image's file can be served; its content is not read."""
        return self._real(payload) is not None

    def open(self, payload: Mapping[str, Any]) -> BinaryIO | None:
        """Open the image's file for reading; return None if it is not served."""
        path = self._real(payload)
        if path is None:
            return None
        # The file may have been replaced since the check: _FLAGS exclude links and pipes.
        try:
            number = os.open(path, _FLAGS)
        except OSError:
            return None
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            return None
        return os.fdopen(number, "rb")

    def read(self, payload: Mapping[str, Any]) -> ServedFile | None:
        """Return the unchanged file if browsers display its format; None if it is not served."""
        file = self.open(payload)
        if file is None:
            return None
        with file:
            try:
                with open_listed(file, "image") as image:
                    media_type = _SHOWN.get(image.format or "")
            except Exception:  # decoders raise any exception on damaged files
                return None
            file.seek(0)
            data = file.read(self._max_bytes + 1)
        if media_type is None or len(data) > self._max_bytes:
            return None
        return ServedFile(data, media_type)

    def decode(self, payload: Mapping[str, Any]) -> DecodedFile | None:
        """Read the image as the model sees it; return None if it is not served or not readable."""
        return self._decoded(payload, None)

    def thumbnail(
        self, payload: Mapping[str, Any], side: int, file_format: ThumbnailFormat = "WEBP"
    ) -> bytes | None:
        """Make a thumbnail, as a file; return None if it is not served or not readable."""
        decoded = self._decoded(payload, Thumbnail(side, file_format))
        return None if decoded is None else decoded.data

    def _decoded(self, payload: Mapping[str, Any], finish: Thumbnail | None) -> DecodedFile | None:
        file = self.open(payload)
        if file is None:
            return None
        with file:
            data = file.read(MAX_FILE_BYTES + 1)
        try:
            return self._decoders.decode(data, "image", finish)
        except ImageReadError:
            return None

    def _real(self, payload: Mapping[str, Any]) -> str | None:
        path = payload.get("path")
        if self._root is None or not isinstance(path, str) or not path or "\0" in path:
            return None
        try:
            real = os.path.realpath(os.path.join(self._root, path), strict=True)
            kind = os.stat(real).st_mode
        except (OSError, ValueError):
            return None
        return real if _inside(real, self._root) and stat.S_ISREG(kind) else None

    def _relative(self, path: str) -> str | None:
        if self._root is None or "\0" in path:
            return None
        try:
            real = os.path.realpath(os.path.join(self._root, path))
        except (OSError, ValueError):
            return None
        return os.path.relpath(real, self._root) if _inside(real, self._root) else None


class Thumbnails:
    """Thumbnails, with an LRU cache in memory.

    Args:
        folder: Source of the images.
        max_bytes: Memory limit of the cache.
    """

    def __init__(self, folder: ImageFolder, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._cache: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, image_id: str, payload: Mapping[str, Any], side: int) -> bytes | None:
        """Return a WebP image with sides of at most `side` pixels; None if it is not served."""
        if not self._folder.has(payload):  # the file may have been removed since it was cached
            return None
        key = (image_id, side)
        with self._lock:
            if (cached := self._cache.get(key)) is not None:
                self._cache.move_to_end(key)
                return cached
        data = self._folder.thumbnail(payload, side)
        if data is None:
            return None
        with self._lock:
            if key not in self._cache:
                self._cache[key] = data
                self._size += len(data) + _ENTRY_OVERHEAD
            while self._size > self._max_bytes:
                _, dropped = self._cache.popitem(last=False)
                self._size -= len(dropped) + _ENTRY_OVERHEAD
        return data


def _inside(path: str, root: str) -> bool:
    try:
        return path != root and os.path.commonpath([path, root]) == root
    except ValueError:  # on another drive
        return False
