"""Decoding of images in worker processes, each with a time limit and a memory limit."""

from __future__ import annotations

import atexit
import json
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import ConfigError, ImageReadError, WorkerDiedError
from edje_qdrant.images.content_ids import MAX_FILE_BYTES
from edje_qdrant.images.decoder_messages import (
    GRANTED,
    Finish,
    Request,
    receive_exactly,
    receive_header,
    send,
)
from edje_qdrant.images.decoder_worker import IDLE_SECONDS
from edje_qdrant.images.exif import Exif
from edje_qdrant.images.open import MAX_PIXELS, error_reason
from edje_qdrant.images.parts import Part, PartKind, Survey

__all__ = [
    "DECODE_MEMORY",
    "DECODE_SECONDS",
    "DecodeLimits",
    "DecodedFile",
    "DecoderPool",
    "default_workers",
]

#: Bytes of memory for all decodes in progress. With the model, this fits a machine of 4 GB.
DECODE_MEMORY = 3 << 29
#: Seconds that decoding one image may take.
DECODE_SECONDS = 60.0

_MOST_WORKERS = 16
# Decoders that a film or a document may cost; its further parts are refused then.
_MOST_LOST = 3
# Bytes of a film that are read to its end in a second, at least.
_BYTES_A_SECOND = 8 << 20
_START_SECONDS = 120.0
# Memory for which a process need not ask: enough for an image of 6 megapixels.
_ALLOWANCE = 48 << 20
# A process that waited longer is not used again, since it may be about to end itself.
_FRESH = IDLE_SECONDS / 2

_MAIN = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from edje_qdrant.images.decoder_worker import main; main(int(sys.argv[1]))"
)
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def default_workers() -> int:
    """Return the number of cores that this process may use, 16 at most."""
    if hasattr(os, "sched_getaffinity"):
        return min(_MOST_WORKERS, len(os.sched_getaffinity(0)))
    return min(_MOST_WORKERS, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """The arguments of a `DecoderPool`, to be sent to another process.

    Attributes:
        workers: Images decoded at a time.
        memory: Bytes of memory for all decodes in progress.
        seconds: Time limit of one image.
        max_pixels: Larger images are refused.
    """

    workers: int
    memory: int = DECODE_MEMORY
    seconds: float = DECODE_SECONDS
    max_pixels: int = MAX_PIXELS

    def pool(self) -> DecoderPool:
        """Create a pool with these limits."""
        return DecoderPool(
            self.workers, memory=self.memory, seconds=self.seconds, max_pixels=self.max_pixels
        )


@dataclass(frozen=True, slots=True)
class DecodedFile:
    """Hold what a decoder process made of one file.

    Attributes:
        image_id: The id that the decoded bytes have, a UUID string; "" of a frame or a page.
        width: Width of the upright image in pixels.
        height: Height of the upright image in pixels.
        format: Pillow's name of the file's format.
        array: `(H, W, 3)` uint8, if pixels were asked for.
        data: The bytes of a file, if one was asked for.
        written: What the decoder wrote on stderr, in one line.
        file_bytes: Size of the file in bytes.
        exif: What the camera wrote into the file.
    """

    image_id: str
    width: int
    height: int
    format: str
    array: NDArray[np.uint8]
    data: bytes
    written: str
    file_bytes: int
    exif: Exif


class DecoderPool:
    """Decode images in other processes; a context manager that ends what still runs.

    A decoder that hangs, crashes or takes too much memory costs one process and fails one image:
    the process is killed, and the next image gets another one. Files are opened in one of the
    listed formats only (see `edje_qdrant.images.FORMATS`). Any number of threads may call `decode`;
    a process is started when a call finds no idle one. Idle processes are kept for other pools of
    this process, and end after a minute.

    Args:
        workers: Images decoded at a time; by default the number of cores, 16 at most.
        memory: Bytes of memory for all decodes in progress, estimated from the images' headers. A
            large image waits until its share is free; one that needs more in total is refused.
        seconds: Time limit of one image, in which its decoder is killed.
        max_pixels: Larger images are refused before they are decoded.
        max_bytes: Larger files are refused before they are read.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> from edje_qdrant.images import DecoderPool
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (8, 6), "red").save(file, "PNG")
        >>> with DecoderPool(1) as pool:
        ...     decoded = pool.decode(file.getvalue(), "red.png")
        >>> decoded.array.shape, decoded.format
        ((6, 8, 3), 'PNG')
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        memory: int = DECODE_MEMORY,
        seconds: float = DECODE_SECONDS,
        max_pixels: int = MAX_PIXELS,
        max_bytes: int = MAX_FILE_BYTES,
    ) -> None:
        self.workers = default_workers() if workers is None else workers
        self._seconds, self._max_pixels, self._max_bytes = seconds, max_pixels, max_bytes
        self._memory = _Memory(memory)
        self._allowance = min(_ALLOWANCE, memory // (2 * self.workers))
        self._slots = threading.Semaphore(self.workers)
        self._lock = threading.Lock()
        self._busy: set[_Process] = set()
        self._lost: dict[tuple[str, int], int] = {}
        self._closed = False

    def __enter__(self) -> DecoderPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def close(self) -> None:
        """Kill the processes that decode; their calls, and later ones, raise ImageReadError."""
        with self._lock:
            self._closed = True
            for process in self._busy:
                process.kill()
        self._memory.close()

    def decode(
        self, file: str | bytes | Part, name: str | None = None, finish: Finish | None = None
    ) -> DecodedFile:
        """Read a file once, name it, decode it upright in RGB, and apply `finish` to the image.

        Args:
            file: A path, a file's bytes, or a frame of a film or a page of a document, whose id is
                not found out here.
            name: Names the image in errors; by default its path.
            finish: Called in the process; it returns an array of uint8 or bytes. It must be
                picklable. By default the whole RGB image is returned.

        Raises:
            ImageReadError: The file is missing, no image, damaged, or too large, or its decoder
                exceeded a limit or crashed.
            ConfigError: `finish` cannot be sent to a process.
            WorkerDiedError: Processes cannot be started here.
        """
        if isinstance(file, Part):
            return self._decode_part(file, name or file.name, finish)
        name = name or (file if isinstance(file, str) else "that was passed")
        is_path = isinstance(file, str)
        if not is_path and len(file) > self._max_bytes:
            size = f"a file of {len(file)} bytes; no more than {self._max_bytes} are read"
            raise ImageReadError(name, size)
        request = self._request(
            name,
            # A process that was started earlier may have another working directory.
            path=os.path.abspath(file) if isinstance(file, str) else None,
            content_bytes=0 if is_path else len(file),
            finish=finish,
        )
        header, made = self._answered(request, b"" if is_path else file)
        return _decoded_file(header, made)

    def survey(self, path: str, kind: PartKind, *, quick: bool = False) -> Survey:
        """Return which parts a film or a document has.

        Args:
            path: Of the file.
            kind: Whether it is a film or a document.
            quick: Believe the film's header, and do not read it to its end.

        Raises:
            ImageReadError: The file is missing, of another kind, damaged or encrypted, the extra
                that reads it is not installed, or its decoder exceeded a limit or crashed.
            WorkerDiedError: Processes cannot be started here.
        """
        try:
            size = 0 if quick else os.stat(path).st_size
        except OSError:
            size = 0
        part = Part(os.path.abspath(path), kind, 0)
        request = replace(
            self._request(path, part=part, survey="header" if quick else "whole"),
            seconds=self._seconds + size / _BYTES_A_SECOND,
        )
        header, _ = self._answered(request, b"")
        survey = header.get("survey", {})
        whole = survey.get("whole")
        return Survey(
            max(0, int(survey.get("pages", 0))), max(0, int(survey.get("last", 0))),
            None if whole is None else int(whole),
        )  # fmt: skip

    def _decode_part(self, part: Part, name: str, finish: Finish | None) -> DecodedFile:
        part = replace(part, path=os.path.abspath(part.path))
        try:
            file = part.path, os.stat(part.path).st_mtime_ns
        except (OSError, ValueError) as error:
            raise ImageReadError(name, error_reason(error)) from error
        with self._lock:
            lost = self._lost.get(file, 0)
        if lost >= _MOST_LOST:
            reason = f"not read, since {lost} decoders of this file crashed or took too long"
            raise ImageReadError(name, reason)
        try:
            header, made = self._answered(self._request(name, finish=finish, part=part), b"")
        except _DecoderLostError:
            with self._lock:
                self._lost[file] = self._lost.get(file, 0) + 1
            raise
        return _decoded_file(header, made)

    def _request(
        self, name: str, *, path: str | None = None, content_bytes: int = 0,
        finish: Finish | None = None, part: Part | None = None,
        survey: Literal["", "header", "whole"] = "",
    ) -> Request:  # fmt: skip
        return Request(
            name=name,
            path=path,
            content_bytes=content_bytes,
            finish=finish,
            max_pixels=self._max_pixels,
            max_bytes=self._max_bytes,
            allowance=self._allowance,
            memory=self._memory.total,
            seconds=self._seconds,
            part=part,
            survey=survey,
        )

    def _answered(self, request: Request, content: Any) -> tuple[dict[str, Any], Any]:
        """Return the header and the body of the answer to a request."""
        try:
            pickled = pickle.dumps(request)
        except Exception as error:  # pickle raises what the pickled objects raise
            raise _unsendable(error) from error
        with self._slots, _Grant(self._memory, self._allowance, request.name) as grant:
            return self._run(request.name, pickled, content, grant, request.seconds)

    def _run(
        self, name: str, pickled: bytes, content: Any, grant: _Grant, seconds: float
    ) -> tuple[dict[str, Any], Any]:
        process = self._started(name, pickled, content)
        healthy = False
        try:
            header, made = process.answer(grant, seconds, 3 * self._max_pixels)
            healthy = not header.get("last")
        except TimeoutError as error:
            reason = f"decoding it took more than {seconds:g} s, so its decoder was ended"
            raise _DecoderLostError(name, reason) from error
        except (EOFError, OSError, ValueError) as error:
            if self._closed:
                raise ImageReadError(name, _ENDED) from error
            reason = f"the process that decoded it {process.ending()}"
            raise _DecoderLostError(name, reason) from error
        finally:
            with self._lock:
                self._busy.discard(process)
                healthy = healthy and not self._closed
            if healthy:
                _park(process)
            else:
                process.end()
        written = str(header.get("written", ""))
        if "refused" in header:
            raise _unsendable(header["refused"])
        if "error" in header:
            reason = str(header["error"])
            raise ImageReadError(name, f"{reason} (its decoder wrote: {written})"
                                 if written else reason)  # fmt: skip
        return header, made

    def _started(self, name: str, pickled: bytes, content: Any) -> _Process:
        """Return a process that has received the request."""
        while True:
            process = _unpark() or _Process()
            with self._lock:
                if self._closed:
                    _park(process)
                    raise ImageReadError(name, _ENDED)
                self._busy.add(process)
            try:
                process.send(pickled, content, self._seconds)
            except OSError:  # an idle process that was killed; a new one answers
                with self._lock:
                    self._busy.discard(process)
                process.end()
                if not process.reused:
                    raise WorkerDiedError(
                        f"a decoder process {process.ending()} before its first image"
                    ) from None
            else:
                return process


_ENDED = "decoding was ended before it was read"


class _DecoderLostError(ImageReadError):
    """Report an image whose decoder crashed or exceeded its time."""


def _decoded_file(header: dict[str, Any], made: Any) -> DecodedFile:
    array = made if isinstance(made, np.ndarray) else np.empty((0, 0, 3), np.uint8)
    return DecodedFile(
        str(header["id"]), int(header["width"]), int(header["height"]), str(header["format"]),
        array, b"" if isinstance(made, np.ndarray) else made, str(header.get("written", "")),
        int(header["file_bytes"]), Exif.from_json(header.get("exif")),
    )  # fmt: skip


class _Process:
    """One decoder process and the socket to it."""

    def __init__(self) -> None:
        """Start a process, and wait until it is ready.

        Raises:
            WorkerDiedError: It does not start.
        """
        self.reused = False
        self.parked = 0.0
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-W", "ignore", "-c", _MAIN, str(theirs.fileno()), *sys.path]
        try:
            self._popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                env={**os.environ, **_ONE_THREAD},
            )  # fmt: skip
        except (OSError, ValueError) as error:
            self._socket.close()
            raise WorkerDiedError(f"cannot start a decoder process: {error}") from error
        finally:
            theirs.close()  # so that the connection is closed when the process ends
        try:
            self._socket.settimeout(_START_SECONDS)
            receive_header(self._socket, receive_exactly)
        except (EOFError, OSError, ValueError) as error:
            self.end()
            raise WorkerDiedError(
                f"a decoder process {self.ending()} while it was starting; see its output on stderr"
            ) from error

    def alive(self) -> bool:
        """Return whether the process has not ended."""
        return self._popen.poll() is None

    def send(self, pickled: bytes, content: Any, seconds: float) -> None:
        """Send a request.

        Raises:
            OSError: The process is gone.
        """
        self._socket.settimeout(seconds)
        send(self._socket, pickled, content)

    def answer(
        self, grant: _Grant, seconds: float, most: int
    ) -> tuple[dict[str, Any], NDArray[np.uint8] | bytes]:
        """Receive the answer; grant memory if it is asked for.

        Args:
            grant: Grants memory; waiting for it does not count.
            seconds: Time limit.
            most: Bytes of the largest possible answer.

        Raises:
            TimeoutError: The time is over.
            EOFError, OSError, ValueError: The process has ended, or sends no answer.
        """
        until = time.monotonic() + seconds

        def receive(channel: socket.socket, into: memoryview) -> None:
            while len(into):
                channel.settimeout(max(until - time.monotonic(), 0.001))
                count = channel.recv_into(into)
                if count == 0:
                    raise EOFError
                into = into[count:]

        while True:
            header = json.loads(receive_header(self._socket, receive))
            if "need" not in header:
                break
            waited = time.monotonic()
            grant.raise_to(int(header["need"]))
            until += time.monotonic() - waited
            self._socket.sendall(GRANTED)
        if "shape" in header:
            shape = tuple(int(side) for side in header["shape"])
            if min(shape, default=0) < 1 or math.prod(shape) > most:
                raise ValueError(f"an array of {shape}")
            array = np.empty(shape, np.uint8)
            receive(self._socket, array.data.cast("B"))
            return header, array
        size = int(header.get("bytes", 0))
        if not 0 <= size <= most:
            raise ValueError(f"{size} bytes")
        data = bytearray(size)
        receive(self._socket, memoryview(data))
        return header, bytes(data)

    def kill(self) -> None:
        """Kill the process; a thread that waits for its answer gets EOFError."""
        self._popen.kill()

    def end(self) -> None:
        """Kill the process and wait for its end."""
        self._popen.kill()
        self._popen.wait()
        self._socket.close()

    def ending(self) -> str:
        """Return how the process ended, as words that follow a noun."""
        code = self._popen.wait()
        if code >= 0:
            return f"ended with exit code {code}"
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"

    def forget(self) -> None:
        """Close the socket in a forked process, to which the decoder does not belong."""
        self._socket.close()


class _Memory:
    """Bytes that decodes may take together, granted in the order in which they are asked for."""

    def __init__(self, total: int) -> None:
        self.total = self._free = total
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self._closed = False

    def acquire(self, size: int) -> bool:
        """Wait until so many bytes are free; return False if the pool was closed."""
        with (
            self._turn,
            self._changed,
        ):  # a large image keeps its turn, so it is not passed for ever
            self._changed.wait_for(lambda: self._closed or self._free >= size)
            if not self._closed:
                self._free -= size
            return not self._closed

    def release(self, size: int) -> None:
        with self._changed:
            self._free += size
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class _Grant:
    """The memory that one decode holds; a context manager that releases it."""

    def __init__(self, memory: _Memory, size: int, name: str) -> None:
        self._memory, self._size, self._name = memory, 0, name
        self._first = size

    def __enter__(self) -> _Grant:
        self.raise_to(self._first)
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.release(self._size)
        self._size = 0

    def raise_to(self, size: int) -> None:
        """Hold so many bytes; wait until they are free.

        Raises:
            ImageReadError: The pool was closed.
            ValueError: More was asked for than there is.
        """
        if size > self._memory.total:
            raise ValueError(f"{size} bytes of {self._memory.total}")
        # Nothing is held while waiting, so two large images cannot wait for each other.
        self._memory.release(self._size)
        self._size = 0
        if not self._memory.acquire(size):
            raise ImageReadError(self._name, _ENDED)
        self._size = size


_idle: list[_Process] = []
_idle_lock = threading.Lock()


def _park(process: _Process) -> None:
    process.reused, process.parked = True, time.monotonic()
    with _idle_lock:
        _idle.append(process)


def _unpark() -> _Process | None:
    """Return an idle process that is alive; end those that waited for long."""
    limit = time.monotonic() - _FRESH
    with _idle_lock:
        old = [process for process in _idle if process.parked < limit or not process.alive()]
        _idle[:] = [process for process in _idle if process not in old]
        found = _idle.pop() if _idle else None
    for process in old:
        process.end()
    return found


def _end_idle() -> None:
    with _idle_lock:
        processes = [*_idle]
        _idle.clear()
    for process in processes:
        process.end()


def _forget_idle() -> None:
    """Leave the decoders to the parent of a forked process."""
    global _idle_lock
    _idle_lock = threading.Lock()  # another thread may have held it
    for process in _idle:
        process.forget()
    _idle.clear()


atexit.register(_end_idle)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_idle)


def _unsendable(why: object) -> ConfigError:
    return ConfigError(
        f"the encoder's `resize` cannot be sent to decoder processes ({why}); define it in a "
        "module that can be imported, or leave `resize` out of the encoder"
    )
