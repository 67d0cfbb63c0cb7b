"""Images in a folder, or one image."""

from __future__ import annotations

import os
from pathlib import Path

from edje_qdrant.errors import ConfigError
from edje_qdrant.images import error_reason
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

    Hidden files and folders are left out, and links to folders are not followed. Folders that
    cannot be read are listed as failed.
    """

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._folder = folder
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
        for here, folders, names in os.walk(
            os.path.abspath(self._folder), onerror=unreadable.append
        ):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                    yield ListedImage(os.path.join(here, name), {})
        yield from (FailedImage(str(error.filename), error_reason(error)) for error in unreadable)


class OneImage(ImageSource):
    """One image file."""

    scope = ()

    def __init__(self, path: str | Path) -> None:
        self.name = str(path)

    def images(self) -> Listing:
        """List the image."""
        yield ListedImage(os.path.abspath(self.name), {})
