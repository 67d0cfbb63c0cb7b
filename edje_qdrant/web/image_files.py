"""Serve images of the collection from under one folder, and nothing else from anywhere."""

from __future__ import annotations

import io
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import open_upright

__all__ = ["ImageFolder", "ServedFile", "Thumbnails"]

# Formats that browsers show, and that cannot hold a script.
_SHOWN = {
    "AVIF": "image/avif",
    "BMP": "image/bmp",
    "GIF": "image/gif",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
}
# Where a system knows them: links are not followed, pipes not waited on.
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_FLAGS |= getattr(os, "O_BINARY", 0)
_ROOM = 4096  # bytes that an entry of the cache takes beside its image, at most


@dataclass(frozen=True, slots=True)
class ServedFile:
    """Hold an image's bytes and what they are."""

    data: bytes
    media_type: str


class ImageFolder:
    """Open images that the collection names, if they lie in a folder.

    Paths are followed to where they end, links included, and what ends outside is not there.

    Args:
        root: The folder; None for none, so that no image is served.
        max_pixels: Of an image that is shown.
        max_bytes: Of a file that is sent as it is.
    """

    def __init__(self, root: Path | None, *, max_pixels: int, max_bytes: int = 64 << 20) -> None:
        self._root = None if root is None else os.path.realpath(root)
        self._max_pixels, self._max_bytes = max_pixels, max_bytes

    def shown(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Return a payload whose `path` tells nothing of the folders above the images' one."""
        path = payload.get("path")
        if not isinstance(path, str):
            return dict(payload)
        return {**payload, "path": self._relative(path) or os.path.basename(path)}

    def has(self, payload: Mapping[str, Any]) -> bool:
        """Return whether there is an image to serve; its content is not looked at."""
        return self._real(payload) is not None

    def open(self, payload: Mapping[str, Any]) -> BinaryIO | None:
        """Open the image's file for reading; None where it is not served."""
        path = self._real(payload)
        if path is None:
            return None
        # What lies there may have been changed since it was looked at: a link is not followed any
        # more, and a pipe is not waited on.
        try:
            number = os.open(path, _FLAGS)
        except OSError:
            return None
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            return None
        return os.fdopen(number, "rb")

    def read(self, payload: Mapping[str, Any]) -> ServedFile | None:
        """Return the image as it is, if browsers show its format; None where it is not served."""
        file = self.open(payload)
        if file is None:
            return None
        with file:
            try:
                with Image.open(file) as image:
                    media_type = _SHOWN.get(image.format or "")
            except Exception:  # on damaged files decoders raise anything
                return None
            file.seek(0)
            data = file.read(self._max_bytes + 1)
        if media_type is None or len(data) > self._max_bytes:
            return None
        return ServedFile(data, media_type)

    def picture(self, payload: Mapping[str, Any]) -> Image.Image | None:
        """Decode the image, upright; None where it is not served or cannot be read."""
        file = self.open(payload)
        if file is None:
            return None
        with file:
            try:
                return open_upright(file, "picture", max_pixels=self._max_pixels)
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
    """Make small images, and keep those that were asked for last.

    Args:
        folder: Where the images come from.
        max_bytes: Of memory for those that are kept.
    """

    def __init__(self, folder: ImageFolder, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._size = 0
        self._turn = threading.Lock()

    def get(self, image_id: str, payload: Mapping[str, Any], side: int) -> bytes | None:
        """Return a WebP image of at most `side` pixels a side; None where it is not served."""
        if not self._folder.has(payload):  # it may have been taken away since
            return None
        key = (image_id, side)
        with self._turn:
            if (kept := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return kept
        picture = self._folder.picture(payload)
        if picture is None:
            return None
        data = _small(picture, side)
        with self._turn:
            if key not in self._kept:
                self._kept[key] = data
                self._size += len(data) + _ROOM
            while self._size > self._max_bytes:
                _, dropped = self._kept.popitem(last=False)
                self._size -= len(dropped) + _ROOM
        return data


def _small(picture: Image.Image, side: int) -> bytes:
    has_alpha = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
    small = picture.convert("RGBA" if has_alpha else "RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "WEBP", quality=85, method=2)
    return out.getvalue()


def _inside(path: str, root: str) -> bool:
    try:
        return path != root and os.path.commonpath([path, root]) == root
    except ValueError:  # on another drive
        return False
