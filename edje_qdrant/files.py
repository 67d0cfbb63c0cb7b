"""Crash-safe file operations: atomic writes, locks, and errors that say what to do."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from edje_qdrant.errors import CollectionLockedError, StoreError

__all__ = [
    "lock_file",
    "os_errors_as_store_errors",
    "read_if_exists",
    "sync_folder",
    "write_atomically",
]

_ADVICE = {
    errno.EACCES: "no permission; check who owns it and its mode, or choose another folder",
    errno.EPERM: "no permission; check who owns it and its mode, or choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOSPC: "no space left on the device; free some and try again",
    errno.EDQUOT: "the disk quota is used up; free some space and try again",
}


@contextmanager
def os_errors_as_store_errors(action: str, path: Path) -> Iterator[None]:
    """Convert an `OSError` into a `StoreError` that says what failed, where, and what to do.

    Raises:
        StoreError: The block raised an `OSError`.
    """
    try:
        yield
    except OSError as error:
        reason = _ADVICE.get(error.errno or 0, error.strerror or str(error))
        raise StoreError(f"cannot {action} {path}: {reason}") from error


def sync_folder(folder: Path) -> None:
    """Make new and replaced names in `folder` survive a power cut, if the system supports it."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_if_exists(path: Path, action: str) -> bytes | None:
    """Return the content of a file, or None if it does not exist.

    Raises:
        StoreError: The file cannot be read; the message names the action.
    """
    with os_errors_as_store_errors(action, path):
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that readers, and a crash at any moment, find the old or the new content.

    Only one process may write a given path at a time.
    """
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
    sync_folder(path.parent)


def lock_file(path: Path, holds: str) -> BinaryIO:
    """Acquire a lock, held until the returned file is closed or the process dies.

    On systems without `fcntl` no lock is acquired; the caller must ensure a single holder.

    Args:
        path: The lock's file, created if it is missing.
        holds: What the lock protects, for the error message.

    Raises:
        CollectionLockedError: This process or another one holds the lock.
    """
    file = path.open("ab")
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise CollectionLockedError(holds) from error
        except OSError:
            file.close()
            raise
    return file
