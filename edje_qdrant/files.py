"""Crash-safe file operations: atomic writes, locks, and errors that say what to do."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import shutil
import stat
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Literal
from weakref import WeakKeyDictionary

from edje_qdrant.errors import CollectionLockedError, EdjeError, StoreError

__all__ = [
    "hidden_file",
    "hidden_folder",
    "kind_of",
    "lock_file",
    "new_file",
    "os_errors_as_store_errors",
    "read_if_exists",
    "reason_of",
    "replaced_file",
    "sync_folder",
    "write_atomically",
]

_ADVICE = {
    errno.EACCES: "no permission; check who owns it and its mode, or choose another folder",
    errno.EPERM: "no permission; check who owns it and its mode, or choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOSPC: "no space left on the device; free some and try again",
    errno.EDQUOT: "the disk quota is used up; free some space and try again",
    errno.EEXIST: "a file of that name is in the way; choose another name",
    errno.ENAMETOOLONG: "the name is too long for the file system; choose a shorter one",
    errno.ENOTDIR: "a part of the path is a file, not a folder; check the path",
    errno.ELOOP: "symbolic links lead in a circle; check the path",
}

# File systems without hard links say so in one of these ways.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
# Network disks without locks, and locks of folders on some, say so in one of these ways.
_NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_NOT_OURS = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP)


@contextmanager
def os_errors_as_store_errors(action: str, path: Path) -> Iterator[None]:
    """Convert an `OSError` into a `StoreError` that says what failed, where, and what to do.

    Raises:
        StoreError: The block raised an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot {action} {path}: {reason_of(error)}") from error


def reason_of(error: OSError) -> str:
    """Return why the system refused, and what to do about it."""
    return _ADVICE.get(error.errno or 0, error.strerror or str(error))


def kind_of(
    path: Path, refusal: Callable[[str], EdjeError] = StoreError
) -> Literal["file", "folder", "other"] | None:
    """Return what is at a path; None if there is nothing.

    `Path.exists` and its like raise an error where the path may not be looked at or is too long.

    Args:
        path: Where to look; links are followed.
        refusal: Class of the error for a path that cannot be looked at.

    Raises:
        EdjeError: It cannot be looked at; of the class `refusal`.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise refusal(f"cannot read {path}: {reason}") from error
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


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


@contextmanager
def replaced_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` when the block ends, durable; a crash leaves the old one.

    Only one process may write a given path at a time. What a killed one leaves beside it,
    `NAME.new`, the next one overwrites.
    """
    fresh = path.with_name(f"{path.name}.new")
    try:
        with fresh.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)  # on a full disk its space is needed
        raise
    sync_folder(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that readers, and a crash at any moment, find the old or the new content.

    Only one process may write a given path at a time.
    """
    with replaced_file(path) as file:
        file.write(data)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears at `path` when the block ends, whole and durable, or not at all.

    A run that is killed, or whose cleanup the disk refuses, can leave a hidden file, and the whole
    file linked to it. The next run for the same path deletes both.

    Raises:
        FileExistsError: Something else is at `path`.
        OSError: The file cannot be written.
    """
    _drop_leftovers(path)
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    fresh, lock = _new_hidden(path, folder=False)
    moved = False
    try:
        with fresh.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(fresh, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.replace(fresh, path)
            moved = True
        sync_folder(path.parent)
        fresh.unlink(missing_ok=True)
    except BaseException:
        with suppress(OSError):
            if moved or _same_file(fresh, path):
                path.unlink()  # first: beside its hidden name, the next run can tell what it is
            fresh.unlink(missing_ok=True)
        raise
    finally:
        lock.close()


@contextmanager
def hidden_file(final: Path) -> Iterator[Path]:
    """Create a hidden empty file beside `final`, and delete it when the block ends.

    What killed runs left for the same `final` is deleted first; `final` itself need not exist.

    Raises:
        OSError: The file cannot be created.
    """
    _drop_leftovers(final)
    fresh, lock = _new_hidden(final, folder=False)
    try:
        yield fresh
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        lock.close()


@contextmanager
def hidden_folder(final: Path) -> Iterator[Path]:
    """Create a hidden folder near `final`, and delete it when the block ends.

    What killed runs left for the same `final` is deleted first. The folder is one level down, so
    that leftovers do not look like what is made in it.

    Raises:
        OSError: The folder cannot be created.
    """
    _drop_leftovers(final)
    around, lock = _new_hidden(final, folder=True)
    try:
        folder = around / "new"
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(around, ignore_errors=True)
        lock.close()


def lock_file(path: Path, holds: str, *, shared: bool = False) -> BinaryIO:
    """Acquire a lock, held until the returned file is closed or the process dies.

    On systems without `fcntl` no lock is acquired; the caller must ensure a single holder.

    Args:
        path: The lock's file, created if it is missing.
        holds: What the lock protects, for the error message.
        shared: Let others that ask for a shared lock hold it too; the file must exist, and need not
            be writable.

    Raises:
        CollectionLockedError: This process or another one holds the lock, and says which.
    """
    file = path.open("rb" if shared else "ab")
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            here = _locked_here(file)
            file.close()
            raise CollectionLockedError(holds, same_process=here) from error
        except OSError:
            file.close()
            raise
        with _LOCKED_GUARD:
            _LOCKED[file] = os.getpid()
    return file


# Locked file -> the process that locked it; a forked process inherits its parent's files.
_LOCKED: WeakKeyDictionary[BinaryIO, int] = WeakKeyDictionary()
_LOCKED_GUARD = Lock()


def _locked_here(file: BinaryIO) -> bool:
    """Return whether this process holds a lock of the file."""
    about = os.fstat(file.fileno())
    with _LOCKED_GUARD:
        own = [held for held, process in _LOCKED.items() if process == os.getpid()]
    for held in own:
        with suppress(ValueError):  # it was closed
            if os.path.samestat(about, os.fstat(held.fileno())):
                return True
    return False


def _hidden_stem(final: Path) -> str:
    name = final.name
    if len(os.fsencode(name)) > 200:  # a name has 255 bytes at most
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{name}."


@dataclass(frozen=True, slots=True)
class _Lock:
    """Hold an open file or folder; `held` is False on disks without locks."""

    descriptor: int
    held: bool

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def _new_hidden(final: Path, *, folder: bool) -> tuple[Path, _Lock]:
    """Create a hidden file or folder beside `final`, and lock it."""
    while True:
        path = final.with_name(f"{_hidden_stem(final)}{uuid.uuid4().hex[:8]}.new")
        if folder:
            path.mkdir(mode=0o700, parents=True)
        else:
            path.touch(exist_ok=False)
        lock = _lock_path(path)
        if lock is not None:
            return path, lock
        # Another run took it for a leftover before it was locked.


def _drop_leftovers(final: Path) -> None:
    """Delete what killed runs left beside `final`; running ones hold a lock on theirs.

    Raises:
        OSError: A killed run left `final` too, and it cannot be deleted.
    """
    stem = _hidden_stem(final)
    for path in final.parent.glob(f"{glob.escape(stem)}*.new"):
        if not re.fullmatch(r"[0-9a-f]{8}", path.name[len(stem) : -len(".new")]):
            continue
        lock = _lock_path(path)
        if lock is None:
            continue
        with closing(lock):
            if not lock.held:
                continue
            if _same_file(path, final):
                final.unlink()
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()


def _lock_path(path: Path) -> _Lock | None:
    """Lock a file or folder; None if another process holds it, or it is gone or not ours."""
    if sys.platform == "win32":
        return _Lock(-1, False)
    import fcntl

    mode = os.O_RDONLY if path.is_dir() else os.O_RDWR  # network disks lock what can be written
    try:
        descriptor = os.open(path, mode | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in _NOT_OURS:
            return None
        raise
    with ExitStack() as undo:
        undo.callback(os.close, descriptor)
        held = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            held = False
        try:
            if not os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                return None
        except FileNotFoundError:
            return None
        undo.pop_all()
        return _Lock(descriptor, held)


def _same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except OSError:
        return False
