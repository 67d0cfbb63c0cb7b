"""The folder of an embedded index: its lock, its metadata file, and its errors."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edje_qdrant.errors import CollectionLockedError, CollectionNotFoundError, EdjeError, StoreError
from edje_qdrant.files import kind_of, lock_file, read_if_exists, reason_of, write_atomically
from edje_qdrant.index.validate import check_dim

__all__ = [
    "FAISS",
    "SHARD",
    "FolderLock",
    "gone_folder",
    "holds_index",
    "lock_folder",
    "read_metadata",
    "refuse_existing",
    "reporting",
    "require_existing",
    "require_space",
    "write_metadata",
]

#: Each engine's own subfolder. The folder holds an index if and only if one of them exists.
SHARD = "shard"
FAISS = "faiss"

_FORMAT = 2
_METADATA = "index.json"
_LOCK = "index.lock"
_SPARE_BYTES = 64 << 20

_MAY_NOT_WRITE = {errno.EACCES, errno.EPERM, errno.EROFS}
_REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
_SQLITE_WORDS = {
    "disk is full": errno.ENOSPC,
    "readonly database": errno.EROFS,
    "unable to open database file": errno.EACCES,
}


@contextmanager
def reporting(folder: Path) -> Iterator[None]:
    """Translate errors of the engine and the file system to this package's.

    Raises:
        CollectionLockedError: Another process holds the folder.
        StoreError: Anything else went wrong.
    """
    try:
        yield
    except EdjeError:
        raise
    except OSError as error:
        raise StoreError(f"cannot use {error.filename or folder}: {reason_of(error)}") from error
    except BaseException as error:
        # The engine raises plain Exception; on damaged files a panic, which is a BaseException.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if "WouldBlock" in str(error):
            raise CollectionLockedError(str(folder)) from error
        if refused := _refusal(error):
            raise StoreError(f"cannot use {folder}: {reason_of(refused)}") from error
        raise StoreError(
            f"the vector engine failed on {folder}: {error}; if the disk is not full the files "
            "are damaged: put them back from a copy, or ingest again into a new folder"
        ) from error


def _refusal(error: BaseException) -> OSError | None:
    """Return the system's refusal that an engine passes on; it says nothing about damage."""
    text = str(error)
    if isinstance(error, sqlite3.OperationalError):
        number = next((n for words, n in _SQLITE_WORDS.items() if words in text), 0)
    else:
        found = re.search(r"\(os error (\d+)\)", text)
        number = int(found[1]) if found else 0
    return OSError(number, os.strerror(number)) if number in _REFUSALS else None


def holds_index(folder: Path, engine: str | None = None) -> bool:
    """Return whether the folder holds an index, of the engine with that subfolder or of any.

    Raises:
        StoreError: The folder cannot be read.
    """
    names = [engine] if engine else (SHARD, FAISS)
    return any(kind_of(folder / name) == "folder" for name in names)


def refuse_existing(folder: Path) -> None:
    """Check that the folder holds no index.

    Raises:
        StoreError: It does.
    """
    if holds_index(folder):
        raise StoreError(
            f"there is an index at {folder} already; open it, or choose another folder"
        )


def require_existing(folder: Path, engine: str) -> None:
    """Check that the folder holds an index of the engine with that subfolder.

    Raises:
        CollectionNotFoundError: It does not; names the indexes beside it, of any engine.
    """
    if not holds_index(folder, engine):
        parent = folder.absolute().parent
        known: list[str] = []
        with suppress(OSError, StoreError):
            known = sorted(p.name for p in parent.iterdir() if holds_index(p))
        raise CollectionNotFoundError(str(parent), folder.absolute().name, known)


def require_space(folder: Path, nbytes: int = 0) -> None:
    """Check that the disk has `nbytes` free, and 64 MB to spare.

    The engine writes through memory maps into sparse files. If the disk has no space for a page of
    them, the system kills the process without an error.

    Raises:
        StoreError: It has less.
    """
    disk = shutil.disk_usage(folder)
    needed = nbytes + _SPARE_BYTES
    if disk.total and disk.free < needed:  # some network disks do not say
        raise StoreError(
            f"cannot write to {folder}: no space left on the device, as {disk.free >> 20} MB are "
            f"free and {needed >> 20} MB needed; free some and try again"
        )


@dataclass(frozen=True, slots=True)
class FolderLock:
    """Hold the lock of a folder.

    Attributes:
        file: The locked file; None for a folder that may not be written and has no such file.
        read_only: Whether this user may not write to the folder.
    """

    file: BinaryIO | None
    read_only: bool = False

    def close(self) -> None:
        """Release the lock."""
        if self.file is not None:
            self.file.close()


def lock_folder(folder: Path, *, readable: bool = False) -> FolderLock:
    """Lock the folder for one index, until the returned lock is closed.

    The engine has a lock of its own, but takes it only after deleting segments that look
    unfinished, which the lock's holder may be writing. Those who may only read share the lock; it
    keeps writers away.

    Args:
        folder: The index's folder.
        readable: Take a folder that may only be read too.

    Raises:
        CollectionLockedError: Another process, or another index of this one, holds it.
        StoreError: The folder cannot be written, nor read if that is enough.
    """
    path = folder / _LOCK
    with reporting(folder):
        try:
            return FolderLock(lock_file(path, str(folder)))
        except OSError as error:
            if not readable or error.errno not in _MAY_NOT_WRITE:
                raise
        try:
            return FolderLock(lock_file(path, str(folder), shared=True), read_only=True)
        except FileNotFoundError:
            return FolderLock(None, read_only=True)


def gone_folder(folder: Path) -> Path:
    """Return what an index's folder is renamed to before it is deleted."""
    return folder.with_name(f".{folder.name}.gone")


def read_metadata(folder: Path) -> tuple[int, dict[str, Any]]:
    """Read the vectors' width and the metadata.

    Raises:
        StoreError: The file is missing, has another format, or a byte of it was changed.
    """
    path = folder / _METADATA
    written = read_if_exists(path, "read") or b""
    try:
        data = json.loads(written)
        if data["format"] != _FORMAT:
            raise StoreError(
                f"{path} has format {data['format']!r}, this version reads {_FORMAT}; "
                "open it with the version that wrote it, or ingest again"
            )
        dim, metadata = check_dim(data["dim"]), dict(data["metadata"])
        # Encoded again it must give the same bytes, so that every changed byte is found.
        if written != _document(dim, metadata):
            raise ValueError("its checksum does not fit its content")
        return dim, metadata
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(
            f"{path} is missing or damaged ({error}); put it back from a copy, "
            "or ingest again into a new folder"
        ) from error


def write_metadata(folder: Path, dim: int, metadata: Mapping[str, Any]) -> None:
    """Write the vectors' width and the metadata atomically."""
    write_atomically(folder / _METADATA, _document(dim, metadata))


def _document(dim: int, metadata: Mapping[str, Any]) -> bytes:
    document = {"format": _FORMAT, "dim": dim, "metadata": metadata}
    checksum = hashlib.sha256(json.dumps(document).encode()).hexdigest()
    return json.dumps({**document, "checksum": checksum}).encode()
