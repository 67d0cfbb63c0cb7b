"""Metadata of an index that lies in a folder, in a file beside what the engine keeps."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Lock
from typing import Any

from edje_qdrant.index.folder import read_metadata, write_metadata
from edje_qdrant.index.validate import check_metadata

__all__ = ["FolderMetadata"]


class FolderMetadata:
    """Keep an open index's metadata; its engine and its folder are the subclass's."""

    _folder: Path
    _dim: int
    _metadata: dict[str, Any]
    _closing: Lock

    def _engine(self) -> AbstractContextManager[Any]:
        """Hold the engine, and refuse where the index is closed."""
        raise NotImplementedError

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self._metadata

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Replace the metadata in one step, which survives a power cut once this has returned.

        Raises:
            ConfigError: The metadata is no JSON object.
            StoreError: The index is closed, or its file cannot be written; the old is kept.
        """
        kept = check_metadata(metadata)
        with self._closing, self._engine():  # not while the folder is being let go of
            write_metadata(self._folder, self._dim, kept)
            self._metadata = kept

    def reload_metadata(self) -> Mapping[str, Any]:
        """Read the metadata from its file again, and return it.

        Raises:
            StoreError: The index is closed, or the file is missing or damaged.
        """
        with self._closing, self._engine():
            self._metadata = read_metadata(self._folder)[1]
            return self._metadata
