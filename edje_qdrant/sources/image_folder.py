"""Image files and thumbnails of a collection, served from named places only."""

from __future__ import annotations

import io
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images.content_ids import MAX_FILE_BYTES
from edje_qdrant.images.decoder_pool import DecodedFile, DecoderPool
from edje_qdrant.images.formats import open_listed
from edje_qdrant.images.parts import Part, part_of
from edje_qdrant.images.thumbnail import Still, Thumbnail, ThumbnailFormat
from edje_qdrant.sources.parts import part_fields, stored_part_id
from edje_qdrant.sources.read import OTHER_PATHS, read_image
from edje_qdrant.sources.uris import is_below, is_uri_of_image, split_part, without_secrets

__all__ = ["ImageFolder", "ServedFile", "Thumbnails", "WholeFile"]

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
# Films and documents that browsers display, by suffix; others are saved.
_PLAYED = {
    **dict.fromkeys((".3gp", ".m4v", ".mov", ".mp4", ".qt"), "video/mp4"),
    **dict.fromkeys((".mkv", ".webm"), "video/webm"),
    ".pdf": "application/pdf",
}
_SAVED = "application/octet-stream"
# Do not follow links or block on pipes, on systems that have these flags.
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_FLAGS |= getattr(os, "O_BINARY", 0)
_ENTRY_OVERHEAD = 4096  # upper bound of a cache entry's bytes beside its image


@dataclass(frozen=True, slots=True)
class ServedFile:
    """Bytes of an image file and their media type."""

    data: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class WholeFile:
    """The film of a frame, or the document of a page.

    Attributes:
        path: Real path of the file, which lies in the folder.
        media_type: Fixed by the file's suffix.
        shown: Whether browsers display it; others should save it.
    """

    path: str
    media_type: str
    shown: bool


class ImageFolder:
    """Access to the images of a collection that lie in one folder, or below some addresses.

    Links are resolved; a path that leads outside the folder counts as missing. Images in tar files,
    tables and data sets in the folder are served, too. An address is only read if it lies below one
    of those that are named.

    Args:
        root: The folder; None serves no files.
        decoders: Processes that decode images.
        max_bytes: Size limit of a file that is sent unchanged.
        addresses: Such as `s3://bucket/photos/`.
    """

    def __init__(
        self,
        root: Path | None,
        decoders: DecoderPool,
        *,
        max_bytes: int = 64 << 20,
        addresses: Sequence[str] = (),
    ) -> None:
        self._addresses = tuple(addresses)
        self._root = None if root is None else os.path.realpath(root)
        # As it was given, too, which is how an ingest may have stored it.
        self._roots = (
            () if root is None else (os.path.realpath(root), str(root), os.path.abspath(root))
        )
        self._decoders, self._max_bytes = decoders, max_bytes

    def shown(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Return a payload whose paths are relative to the folder and hide its parents.

        The paths of copies are left out.
        """
        payload = {name: value for name, value in payload.items() if name != OTHER_PATHS}
        path = payload.get("path")
        if not isinstance(path, str):
            return payload
        if any(is_below(path, address) for address in self._addresses):
            return {**payload, "path": without_secrets(path)}
        part = self._part(path)
        names = ["path"] if part is None else ["path", *part_fields(part)]
        return {
            **payload,
            **{
                name: self._relative(value) or os.path.basename(value)
                for name in names
                if isinstance(value := payload.get(name), str)
            },
        }

    def stored_paths(self, path: str) -> list[str]:
        """Return the paths that a payload may hold for a path as it is stored or as it is shown."""
        if self._root is None or os.path.isabs(path) or self._relative(path) is None:
            return [path]
        return [path, *dict.fromkeys(os.path.join(root, path) for root in self._roots)]

    def has(self, payload: Mapping[str, Any]) -> bool:
        """Return whether the image's file can be served; its content is not read."""
        return self._real(payload) is not None or self._elsewhere(payload) is not None

    def open(self, payload: Mapping[str, Any]) -> BinaryIO | None:
        """Open the image's file for reading; return None if it is not served, or is no file."""
        path = self._real(payload) if self.fragment(payload) is None else None
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

    def fragment(self, payload: Mapping[str, Any]) -> str | None:
        """Return where in its film or document an image is: `t=12` or `page=3`."""
        path = payload.get("path")
        part = self._part(path) if isinstance(path, str) else None
        return None if part is None else part.fragment

    def whole(self, payload: Mapping[str, Any]) -> WholeFile | None:
        """Return the film of a frame or the document of a page; None if it is not served."""
        real = None if self.fragment(payload) is None else self._real(payload)
        if real is None:
            return None
        media_type = _PLAYED.get(os.path.splitext(real)[1].lower())
        return WholeFile(real, media_type or _SAVED, media_type is not None)

    def read(self, payload: Mapping[str, Any]) -> ServedFile | None:
        """Return the unchanged file if browsers display its format; None if it is not served.

        A frame or a page is returned as a PNG.
        """
        if self.fragment(payload) is not None:
            decoded = self._decoded(payload, Still())
            return None if decoded is None else ServedFile(decoded.data, "image/png")
        data = self._content(payload, self._max_bytes + 1)
        if data is None:
            return None
        try:
            with open_listed(io.BytesIO(data), "image") as image:
                media_type = _SHOWN.get(image.format or "")
        except Exception:  # decoders raise any exception on damaged files
            return None
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

    def _decoded(
        self, payload: Mapping[str, Any], finish: Thumbnail | Still | None
    ) -> DecodedFile | None:
        if self.fragment(payload) is not None:
            return self._decoded_part(payload, finish)
        data = self._content(payload, MAX_FILE_BYTES + 1)
        if data is None:
            return None
        try:
            return self._decoders.decode(data, "image", finish)
        except ImageReadError:
            return None

    def _content(self, payload: Mapping[str, Any], most: int) -> bytes | None:
        """Return up to `most` bytes of the image's file; None if it is not served."""
        file = self.open(payload)
        if file is not None:
            with file:
                return file.read(most)
        path = self._elsewhere(payload)
        try:
            return None if path is None else read_image(path, most)
        except ImageReadError:
            return None

    def _elsewhere(self, payload: Mapping[str, Any]) -> str | None:
        """Return the path of an image below the addresses, or in a container in the folder."""
        path = payload.get("path")
        if not isinstance(path, str) or not path or "\0" in path:
            return None
        if is_uri_of_image(path):
            served = any(is_below(path, address) for address in self._addresses)
            return path if served else None
        found = split_part(path)
        if found is None or self._root is None:
            return None
        container, fragment = found[0], path[len(found[0]) :]
        try:
            real = os.path.realpath(os.path.join(self._root, container), strict=True)
            kind = os.stat(real).st_mode
        except (OSError, ValueError):
            return None
        readable = stat.S_ISREG(kind) or stat.S_ISDIR(kind)  # a pipe would block
        return f"{real}{fragment}" if readable and _inside(real, self._root) else None

    def _decoded_part(
        self, payload: Mapping[str, Any], finish: Thumbnail | Still | None
    ) -> DecodedFile | None:
        real, part = self._real(payload), self._part(str(payload.get("path")))
        if real is None or part is None:
            return None
        part = replace(part, path=real)
        try:
            decoded = self._decoders.decode(part, "image", finish)
            # The pixels alone are compared with an id.
            image_id = stored_part_id(part) if finish is None else ""
        except ImageReadError:
            return None
        return replace(decoded, image_id=image_id)

    def _part(self, path: str) -> Part | None:
        if "\0" in path:
            return None
        return part_of(path if self._root is None else os.path.join(self._root, path))

    def _real(self, payload: Mapping[str, Any]) -> str | None:
        """Return the real path of the image's file, if it lies in the folder."""
        path = payload.get("path")
        if self._root is None or not isinstance(path, str) or not path or "\0" in path:
            return None
        part = self._part(path)
        path = path if part is None else part.path
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
