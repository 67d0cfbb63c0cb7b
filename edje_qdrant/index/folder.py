"""The folder of an embedded index: its lock, its metadata file, and the errors it gives rise to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from edje_qdrant.durable import lock_file, write_atomically
from edje_qdrant.errors import CollectionLockedError, EdjeError, StoreError
from edje_qdrant.index.checks import check_dim

__all__ = ["lock_folder", "read_metadata", "reporting", "write_metadata"]

_FORMAT = 1
_METADATA = "index.json"
_LOCK = "index.lock"


@contextmanager
def reporting(folder: Path) -> Iterator[None]:
    """Raise this package's errors in place of the engine's and the file system's.

    Raises:
        CollectionLockedError: Another process holds the folder.
        StoreError: Anything else went wrong.
    """
    try:
        yield
    except EdjeError:
        raise
    except OSError as error:
        raise StoreError(
            f"cannot use {folder}: {error}; check that it is a folder, its permissions and the "
            "free space"
        ) from error
    except BaseException as error:
        # The engine raises bare Exception, and on damaged files a panic that is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if "WouldBlock" in str(error):
            raise CollectionLockedError(str(folder)) from error
        raise StoreError(
            f"the vector engine failed on {folder}: {error}; if the disk is not full the files "
            "are damaged: put them back from a copy, or ingest again into a new folder"
        ) from error


def lock_folder(folder: Path) -> BinaryIO:
    """Take the folder for one index alone, until the returned file is closed.

    The engine has a lock of its own, but takes it only after clearing away segments that look
    unfinished, which may be ones that the lock's holder is writing.

    Raises:
        CollectionLockedError: Another process, or another index of this one, holds it.
        StoreError: The folder cannot be written.
    """
    with reporting(folder):
        return lock_file(folder / _LOCK, str(folder))


def read_metadata(folder: Path) -> tuple[int, dict[str, Any]]:
    """Return the vectors' width and the metadata.

    Raises:
        StoreError: The file is missing, damaged or of another format.
    """
    path = folder / _METADATA
    try:
        data = json.loads(path.read_bytes())
        if data["format"] != _FORMAT:
            raise StoreError(
                f"{path} has format {data['format']!r}, this version reads {_FORMAT}; "
                "open it with the version that wrote it, or ingest again"
            )
        return check_dim(data["dim"]), dict(data["metadata"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} is missing or damaged ({error}); put it back from a copy, "
            "or ingest again into a new folder"
        ) from error


def write_metadata(folder: Path, dim: int, metadata: Mapping[str, Any]) -> None:
    """Write the vectors' width and the metadata in one step: wholly, or not at all."""
    document = {"format": _FORMAT, "dim": dim, "metadata": metadata}
    write_atomically(folder / _METADATA, json.dumps(document).encode())
