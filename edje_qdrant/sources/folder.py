"""Images in a folder, or one image."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Set as AbstractSet
from pathlib import Path

from edje_qdrant.errors import ConfigError
from edje_qdrant.images import error_reason
from edje_qdrant.sources.left_out import file_kind, folder_kind
from edje_qdrant.sources.protocol import ImageSource, ListedImage, Listing
from edje_qdrant.types import FailedImage

__all__ = ["IMAGE_SUFFIXES", "FolderSource", "OneImage"]

#: Files in a folder that count as images.
IMAGE_SUFFIXES = frozenset({
    ".arw", ".avif", ".bmp", ".cr2", ".cr3", ".dng", ".gif", ".heic", ".heif", ".hif", ".ico",
    ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".mpo", ".nef", ".nrw", ".orf",
    ".pbm", ".pef", ".pgm", ".png", ".pnm", ".ppm", ".raf", ".rw2", ".srw", ".tif", ".tiff",
    ".webp",
})  # fmt: skip


class FolderSource(ImageSource):
    """The images in a folder and below, in order of names.

    Hidden files, and folders of thumbnails and of systems (`folder_kind`), are left out, and links
    to folders are not followed; the folder itself may have any name. Folders that cannot be read
    are listed as failed.

    Args:
        folder: The folder.
        suffixes: Of the files that are listed, in small letters.
    """

    def __init__(self, folder: Path, suffixes: AbstractSet[str] = IMAGE_SUFFIXES) -> None:
        self.name = str(folder)
        self._folder, self._suffixes = folder, suffixes
        self.scope = (os.path.join(os.path.abspath(folder), ""),)

    def images(self) -> Listing:
        """List the folder."""
        try:
            os.scandir(self._folder).close()
        except OSError as error:
            raise ConfigError(
                f"cannot read the folder {self._folder}: {error_reason(error)}"
            ) from error
        unreadable: list[OSError] = []
        left_out: Counter[str] = Counter()
        for here, folders, names in os.walk(
            os.path.abspath(self._folder), onerror=unreadable.append
        ):
            folders[:] = [name for name in sorted(folders) if _searched(here, name, left_out)]
            for name in sorted(names):
                if not name.startswith(".") and Path(name).suffix.lower() in self._suffixes:
                    yield ListedImage(os.path.join(here, name), {})
                else:
                    left_out[file_kind(name)] += 1
        self.left_out = dict(left_out)
        yield from (FailedImage(str(error.filename), error_reason(error)) for error in unreadable)


def _searched(here: str, name: str, left_out: Counter[str]) -> bool:
    """Return whether a folder is searched; count it if it is not."""
    kind = folder_kind(name, os.path.basename(here))
    if kind is None and os.path.islink(os.path.join(here, name)):
        kind = f"link to a folder ({name})"
    if kind is not None:
        left_out[kind] += 1
    return kind is None


class OneImage(ImageSource):
    """One image file."""

    scope = ()

    def __init__(self, path: str | Path) -> None:
        self.name = str(path)

    def images(self) -> Listing:
        """List the image."""
        yield ListedImage(os.path.abspath(self.name), {})
