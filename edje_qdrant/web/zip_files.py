"""Image files of a collection as one zip file, written while it is sent."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from edje_qdrant.sources.image_folder import ImageFolder

__all__ = ["ZipEntry", "bytes_of", "entry_names", "zip_entries", "zipped"]

_CHUNK = 1 << 20
_LONGEST = 150  # characters of a folder's or a file's name
_NOT_INCLUDED = "not-included.txt"
# Characters, and names, that some systems do not take in a file's name.
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\/]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)
_OLDEST = 315_532_800  # seconds since 1970: a zip file has no dates before 1980


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """An image of a zip file: the name of its file there, and its payload."""

    name: str
    payload: Mapping[str, Any]


def entry_names(paths: Sequence[str]) -> list[str]:
    """Return names for files in a zip file: unique, relative, and usable on every system.

    Example:
        >>> entry_names(["a/1.jpg", "/b/../1.jpg", "A/1.JPG", "what?.png", "aux.png"])
        ['a/1.jpg', 'b/1.jpg', 'A/1 (2).JPG', 'what_.png', '_aux.png']
    """
    taken = {_NOT_INCLUDED}
    names = []
    for path in paths:
        parts = [safe for part in path.replace("\\", "/").split("/") if (safe := _safe(part))]
        whole = PurePosixPath(*(parts or ["image"]))
        name, number = whole, 1
        while str(name).casefold() in taken:
            number += 1
            name = whole.with_name(f"{whole.stem} ({number}){whole.suffix}")
        taken.add(str(name).casefold())
        names.append(str(name))
    return names


def _safe(part: str) -> str:
    part = _FORBIDDEN.sub("_", part).rstrip(". ").lstrip()
    if len(part) > _LONGEST:
        stem, suffix = os.path.splitext(part)
        part = stem[: _LONGEST - len(suffix[:10])] + suffix[:10]
    return f"_{part}" if _RESERVED.match(part) else part


def zip_entries(
    folder: ImageFolder, ids: Sequence[str], payloads: Mapping[str, Mapping[str, Any]]
) -> list[ZipEntry]:
    """Return what a zip file of some images holds.

    Args:
        folder: Where their files are.
        ids: The images, in order.
        payloads: id -> payload; an image without one is named by its id, and has no file.
    """
    given = [payloads.get(each, {}) for each in ids]
    paths = [
        f"{path}.png" if folder.fragment(payload) is not None else path
        for payload in given
        for path in [folder.shown(payload).get("path")]
    ]
    named = [path if isinstance(path, str) else each for path, each in zip(paths, ids, strict=True)]
    return [*map(ZipEntry, entry_names(named), given)]


def bytes_of(folder: ImageFolder, entries: Sequence[ZipEntry]) -> int | None:
    """Return the size of the files together; None if there is none of them.

    Of frames and pages, which are PNGs in the zip file, it is the size of their pixels.
    """
    sizes = []
    for entry in entries:
        if folder.fragment(entry.payload) is not None and folder.has(entry.payload):
            sizes.append(3 * _side(entry.payload, "width") * _side(entry.payload, "height"))
            continue
        file = folder.open(entry.payload)
        if file is not None:
            with file:
                sizes.append(os.fstat(file.fileno()).st_size)
    return sum(sizes) if sizes else None


def zipped(folder: ImageFolder, entries: Sequence[ZipEntry]) -> Iterator[bytes]:
    """Yield the bytes of a zip file of images, which holds their files unchanged.

    Of films and documents it holds the frames and pages, as PNGs.
    Files that cannot be read are listed in a text file in it.
    """
    written = _Written()
    left_out = []
    with ZipFile(written, "w", ZIP_STORED) as archive:
        for entry in entries:
            if folder.fragment(entry.payload) is not None:
                still = folder.read(entry.payload)
                if still is None:
                    left_out.append(entry.name)
                    continue
                archive.writestr(ZipInfo(entry.name, time.localtime()[:6]), still.data)
                yield written.take()
                continue
            file = folder.open(entry.payload)
            if file is None:
                left_out.append(entry.name)
                continue
            with file:
                changed = max(_OLDEST, os.fstat(file.fileno()).st_mtime)
                info = ZipInfo(entry.name, time.localtime(changed)[:6])
                with archive.open(info, "w", force_zip64=True) as target:
                    while chunk := file.read(_CHUNK):
                        target.write(chunk)
                        yield written.take()
        if left_out:
            lines = "\n".join(left_out)
            archive.writestr(_NOT_INCLUDED, f"These files are not in the folder now:\n{lines}\n")
    yield written.take()


def _side(payload: Mapping[str, Any], name: str) -> int:
    value = payload.get(name)
    return value if isinstance(value, int) and value > 0 else 1


class _Written:
    """A file that a zip file is written to, and from which the bytes are taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Do nothing, as zipfile calls it."""

    def close(self) -> None:
        """Do nothing; the bytes are still to be taken."""

    def take(self) -> bytes:
        """Return what was written since the last call."""
        data = b"".join(self._parts)
        self._parts.clear()
        return data
