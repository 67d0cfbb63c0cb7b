"""Reading and listing of remote objects, with bounded retries."""

from __future__ import annotations

import io
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.images import MAX_FILE_BYTES
from edje_qdrant.sources.buckets import BucketStore
from edje_qdrant.sources.remote_store import AwayError, RemoteObject, RemoteStore
from edje_qdrant.sources.uris import without_secrets

__all__ = ["RemoteFile", "about", "fetch", "objects", "store_of"]

T = TypeVar("T")

# Tries of a request, and the first pause between two in seconds; each further one is twice as long.
_TRIES, _PAUSE = 4, 0.5
# No pause is longer, whatever a server asks for.
_LONGEST_PAUSE = 20.0
# After all tries failed, a server is asked only once for each object for so many seconds.
_AWAY_SECONDS = 60.0
# Read at a time from a container: enough for a few headers of a tar file, or of a table.
_BLOCK = 128 << 10


_stores: dict[str, RemoteStore] = {}
_stores_lock = threading.Lock()
_away: dict[str, float] = {}  # server -> when it was found away


def store_of(uri: str) -> RemoteStore:
    """Return the store that reads an address.

    Raises:
        MissingExtraError: The library for this scheme is not installed.
    """
    scheme = uri.partition("://")[0]
    with _stores_lock:
        if scheme not in _stores:
            if scheme in ("http", "https"):
                from edje_qdrant.sources.http import HttpStore  # imports httpx, which takes long

                _stores["http"] = _stores["https"] = HttpStore()
            else:
                _stores[scheme] = BucketStore(scheme)
        return _stores[scheme]


def about(uri: str) -> RemoteObject:
    """Return what is known of a remote object.

    Raises:
        ImageReadError: It is missing or may not be read, or its server is away.
    """
    return _tried(uri, lambda: store_of(uri).about(uri))


def objects(prefix: str) -> list[RemoteObject]:
    """Return the objects below an address, or those that match a pattern, in order of names.

    Raises:
        ConfigError: They cannot be listed, or the server is away.
    """
    try:
        return _tried(prefix, lambda: store_of(prefix).objects(prefix))
    except ImageReadError as error:
        raise ConfigError(f"cannot list {prefix}: {error.reason}") from error


def fetch(
    uri: str, start: int | None = None, end: int | None = None, max_bytes: int = MAX_FILE_BYTES
) -> tuple[bytes, Mapping[str, Any]]:
    """Return the bytes of a remote object, and its stamp.

    Args:
        uri: The object.
        start: The first byte to read; None for all.
        end: The byte before which reading ends.
        max_bytes: Larger objects are refused.

    Raises:
        ImageReadError: It is missing, may not be read or is too large, or its server is away.
    """
    return _tried(uri, lambda: store_of(uri).read(uri, start, end, max_bytes))


def _tried(uri: str, request: Callable[[], T]) -> T:
    """Make a request, and repeat it while its server is away, a bounded number of times."""
    server = "/".join(uri.split("/", 3)[:3])
    since = _away.get(server)
    tries = 1 if since is not None and time.monotonic() - since < _AWAY_SECONDS else _TRIES
    for number in range(1, tries + 1):
        try:
            found = request()
        except AwayError as error:  # noqa: PERF203 - retries need a loop
            if number == tries:
                _away[server] = time.monotonic()
                often = f", tried {tries} times" if tries > 1 else ""
                reason = f"{without_secrets(server)} cannot be read now{often}: {error}"
                raise ImageReadError(uri, reason) from error
            pause = error.pause or _PAUSE * 2 ** (number - 1) * random.uniform(0.8, 1.2)
            time.sleep(min(pause, _LONGEST_PAUSE))
        else:
            _away.pop(server, None)
            return found
    raise AssertionError("unreachable")


class RemoteFile(io.RawIOBase):
    """A remote object as a file with random access; not thread-safe.

    Args:
        uri: The object; its size must be known to the server.

    Raises:
        ImageReadError: It cannot be read.
    """

    def __init__(self, uri: str) -> None:
        self.object = about(uri)
        if self.object.size is None:
            raise ImageReadError(uri, "its server does not say how large it is")
        self._size, self._at = self.object.size, 0

    @classmethod
    def buffered(cls, uri: str) -> tuple[io.BufferedReader, RemoteObject]:
        """Open an object; return it with a buffer for small reads, and what is known of it."""
        file = cls(uri)
        return io.BufferedReader(file, _BLOCK), file.object

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to another place."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; return the number of bytes read.

        Raises:
            OSError: The object cannot be read.
        """
        view = memoryview(buffer).cast("B")
        end = min(self._at + len(view), self._size)
        if end <= self._at:
            return 0
        try:
            data, _ = fetch(self.object.uri, self._at, end, max_bytes=end - self._at)
        except ImageReadError as error:
            raise OSError(error.reason) from error
        if len(data) < end - self._at:
            raise OSError("the object is shorter than it was when it was opened")
        view[: len(data)] = data
        self._at += len(data)
        return len(data)
