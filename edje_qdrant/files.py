"""Files that survive a crash: replaced whole, by one writer at a time."""

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
    """Turn an `OSError` into a `StoreError` that says what failed, where, and what to do.

    Raises:
        StoreError: The block raised an `OSError`.
    """
    try:
        yield
    except OSError as error:
        reason = _ADVICE.get(error.errno or 0, error.strerror or str(error))
        raise StoreError(f"cannot {action} {path}: {reason}") from error


def sync_folder(folder: Path) -> None:
    """Make names just created or replaced in `folder` survive a power cut, where the system can."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that a reader, or a crash at any moment, finds the old or the new, whole.

    Only one process may do so at a time for a given path.
    """
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
    sync_folder(path.parent)


def lock_file(path: Path, holds: str) -> BinaryIO:
    """Take a lock until the returned file is closed or its process dies.

    On systems without `fcntl` no lock is taken, and keeping to one holder is the caller's business.

    Args:
        path: The lock's file, made if it is missing.
        holds: What the lock is for, named when it is taken.

    Raises:
        CollectionLockedError: This process or another one holds it.
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
