"""A decoder process: reads, names, decodes and resizes one image after the other, within limits.

It never imports torch, so it starts in a fraction of a second and stays small.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import pickle
import select
import signal
import socket
import sys
import tempfile
import threading
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images.content_ids import image_bytes_id, read_image_file
from edje_qdrant.images.decode_memory import decode_memory
from edje_qdrant.images.decoder_messages import (
    GRANTED,
    Request,
    receive_exactly,
    receive_header,
    send,
)
from edje_qdrant.images.document import DOCUMENT, Document
from edje_qdrant.images.exif import Exif, read_exif
from edje_qdrant.images.film import FILM, Film, load_av
from edje_qdrant.images.formats import open_listed
from edje_qdrant.images.open import (
    error_reason,
    ignore_decoder_warnings,
    open_upright,
    require_file,
)
from edje_qdrant.images.parts import Part, size_and_time
from edje_qdrant.images.raw import RAW

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment] # the one name for both cases

__all__ = ["IDLE_SECONDS", "main"]

#: A process that gets no work for so long ends itself.
IDLE_SECONDS = 60

# Seconds after which a process ends itself that its parent should have killed.
_LATE = 5
# Memory beside the image: tables of decoders, buffers of the allocator.
_SLACK = 192 << 20
# Bytes of messages of the decoders that are kept for one file, and characters that are passed on.
_MOST_WRITTEN, _MOST_SHOWN = 1 << 20, 300
# A film that needs no more memory stays open, so that its next frame costs less.
_KEPT_FILM = 192 << 20


def main(descriptor: int) -> None:
    """Answer requests until the other side of a socket is closed.

    Args:
        descriptor: The socket's file descriptor.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent process ends this one
        signal.signal(number, signal.SIG_IGN)
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_FSIZE", _MOST_WRITTEN)  # nothing is written but messages
    Image.MAX_IMAGE_PIXELS = None  # each request has its own limit
    # A program's notes in a PNG may be longer than Pillow's 1 MB; the memory is limited here.
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
    with contextlib.suppress(ImportError, AttributeError):
        from PIL import AvifImagePlugin

        AvifImagePlugin.DECODE_MAX_THREADS = 1  # type: ignore[attr-defined] # new in Pillow 11.3
    with contextlib.suppress(ImportError):
        from pi_heif import options

        options.DECODE_THREADS = 1
        # They would be opened with each file, and are not used.
        options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
    ignore_decoder_warnings()
    channel = socket.socket(fileno=descriptor)
    if hasattr(select, "poll"):
        threading.Thread(target=_end_with_parent, args=(descriptor,), daemon=True).start()
    send(channel, b"{}")
    written = _Written()
    with contextlib.suppress(EOFError, OSError):  # the parent process is gone
        while _answer_one(channel, written):
            pass


def _end_with_parent(descriptor: int) -> None:
    """End this process when the other side of the socket is closed, even if a decoder hangs."""
    hangup = select.poll()
    hangup.register(descriptor, 0)  # a hang-up is always reported
    hangup.poll()
    os._exit(0)


def _answer_one(channel: socket.socket, written: _Written) -> bool:
    """Answer one request; return whether this process can answer another."""
    _alarm(IDLE_SECONDS)
    pickled = receive_header(channel, receive_exactly)
    healthy, body = True, b""
    try:
        request: Request = pickle.loads(pickled)
    except Exception as error:
        header: dict[str, Any] = {"refused": f"{type(error).__name__}: {error}"}
        send(channel, json.dumps(header).encode())
        return False  # the content that follows was not read
    try:
        content = bytearray(request.content_bytes)
        receive_exactly(channel, memoryview(content))
        _alarm(request.seconds + _LATE)
        if request.part is None:
            _close_film()
            header, body = _decoded(channel, request, content)
        else:
            header, body = _decoded_part(channel, request, request.part)
    except ImageReadError as error:
        header = {"error": error.reason}
    except MemoryError:
        header = {"error": "its decoder took far more memory than an image of its size needs"}
        healthy = False
    except OSError:
        raise  # of the socket; those of files are ImageReadError
    except Exception as error:  # decoders raise any type of error for damaged files
        header = {"error": error_reason(error)}
    if text := written.take():
        header["written"] = text
    send(channel, json.dumps({**header, "last": not healthy}).encode(), body)
    return healthy


def _decoded(
    channel: socket.socket, request: Request, content: bytearray
) -> tuple[dict[str, Any], Any]:
    """Return the header and the body of the answer.

    Raises:
        ImageReadError: There is no image, or it is too large.
        MemoryError: The decoder needs more memory than was granted.
    """
    base = _address_space()
    _limit_memory(base, request.allowance + request.max_bytes)
    data = bytes(content)
    if request.path is not None:
        data = read_image_file(request.path, request.max_bytes, request.name)
    image_id = image_bytes_id(data, request.name)
    try:
        with open_listed(io.BytesIO(data), request.name) as image:
            if image.width * image.height > request.max_pixels:
                raise ImageReadError(
                    request.name,
                    f"{image.width} x {image.height} pixels; no more than {request.max_pixels} "
                    "are allowed (max_pixels)",
                )
            needed = len(data) + decode_memory(image)
            what = f"{image.width} x {image.height} pixels"
            _reserve(channel, request, base, needed, what)
            kind = image.format
            rgb = open_upright(image, request.name, max_pixels=request.max_pixels)
            width, height = rgb.size
            exif = read_exif(image, data if kind in ("TIFF", RAW) else b"")
            rgb.info.pop("icc_profile", None)  # a thumbnail would keep it
            made = np.asarray(rgb) if request.finish is None else request.finish(rgb)
            del rgb
    except OSError as error:
        raise ImageReadError(request.name, error_reason(error)) from error
    return _answer(image_id, (width, height), str(kind), len(data), exif, made)


def _answer(
    image_id: str, size: tuple[int, int], kind: str, file_bytes: int, exif: Exif, made: Any
) -> tuple[dict[str, Any], Any]:
    """Return the header and the body of an answer, from what `finish` made."""
    header = {
        "id": image_id, "width": size[0], "height": size[1], "format": kind,
        "file_bytes": file_bytes, "exif": exif.to_json(),
    }  # fmt: skip
    if isinstance(made, bytes):
        return {**header, "bytes": len(made)}, made
    pixels = np.ascontiguousarray(made, dtype=np.uint8)
    return {**header, "shape": pixels.shape}, pixels.data.cast("B")


def _decoded_part(
    channel: socket.socket, request: Request, part: Part
) -> tuple[dict[str, Any], Any]:
    """Return the header and the body of the answer for a frame, a page or a survey.

    Raises:
        ImageReadError: There is no such part, or it is too large.
        MemoryError: The decoder needs more memory than was granted.
    """
    if _film is not None and (part.kind != "frame" or _film[0] != part.path or request.survey):
        _close_film()
    if part.kind == "frame":
        load_av(request.name)  # before the address space is measured
    base = _address_space()
    _limit_memory(base, request.allowance + request.max_bytes)
    try:
        if part.kind == "page":
            with open(part.path, "rb") as file:
                status = _status(file, part, request.name)
                with Document(file, request.name) as document:
                    if request.survey:
                        return {"survey": asdict(document.survey())}, b""
                    _reserve(channel, request, base, document.memory(), "a page")
                    rgb, exif, kind = document.page(part.at), Exif(), DOCUMENT
        else:
            film, status = _opened_film(part, request.name)
            if request.survey:
                quick = request.survey == "header"
                return {"survey": asdict(film.estimate() if quick else film.survey())}, b""
            needed = film.memory()
            _reserve(channel, request, base, needed, f"frames of {film.width} x {film.height}")
            rgb = film.frame(part.at, request.max_pixels)
            exif, kind = film.exif(), FILM
            if needed > _KEPT_FILM:
                _close_film()
    except OSError as error:
        _close_film()
        raise ImageReadError(request.name, error_reason(error)) from error
    except BaseException:
        _close_film()
        raise
    size = rgb.size
    made = np.asarray(rgb) if request.finish is None else request.finish(rgb)
    return _answer("", size, kind, status.st_size, exif, made)


# The film that is open: its path, its file, and the stamp that it had.
_film: tuple[str, BinaryIO, Film] | None = None


def _opened_film(part: Part, name: str) -> tuple[Film, os.stat_result]:
    global _film
    if _film is None:
        require_file(part.path, name)
        file = open(part.path, "rb")  # noqa: SIM115 - open until another file is asked for
        try:
            status = _status(file, part, name)
            _film = (part.path, file, Film(file, name, status.st_size))
        except BaseException:
            file.close()
            raise
    return _film[2], _status(_film[1], part, name)


def _close_film() -> None:
    global _film
    if _film is not None:
        _, file, film = _film
        _film = None
        film.__exit__()
        file.close()


def _status(file: BinaryIO, part: Part, name: str) -> os.stat_result:
    """Return a file's status.

    Raises:
        ImageReadError: It is no file, or has changed since the part was named.
    """
    require_file(part.path, name)
    status, there = os.fstat(file.fileno()), os.stat(part.path)
    if part.stamp is not None and not size_and_time(status) == size_and_time(there) == part.stamp:
        raise ImageReadError(name, "the file changed while it was read; run this again")
    return status


def _reserve(channel: socket.socket, request: Request, base: int, needed: int, what: str) -> None:
    """Ask for memory, and limit this process to it.

    Raises:
        ImageReadError: No more than a part of it is allowed.
    """
    if needed > request.memory:
        raise ImageReadError(
            request.name,
            f"{what} need {_mb(needed)} MB to be decoded; no more than {_mb(request.memory)} MB "
            "are allowed (decode_memory)",
        )
    if needed > request.allowance:
        _ask(channel, needed, request.seconds)
    _limit_memory(base, needed)


def _ask(channel: socket.socket, needed: int, seconds: float) -> None:
    """Wait until so many bytes of memory are granted; this time does not count."""
    _alarm(0)
    send(channel, json.dumps({"need": needed}).encode())
    answer = bytearray(len(GRANTED))
    receive_exactly(channel, memoryview(answer))
    _alarm(seconds + _LATE)


class _Written:
    """Capture what decoders write on stderr and stdout, so that it can be assigned to a file."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        for descriptor in (1, 2):
            os.dup2(self._file.fileno(), descriptor)

    def take(self) -> str:
        """Return the text written since the last call, in one line."""
        sys.stderr.flush()
        number = self._file.fileno()
        size = os.lseek(number, 0, os.SEEK_END)
        if size == 0:
            return ""
        text = os.pread(number, 4 * _MOST_SHOWN, 0).decode(errors="replace")
        os.ftruncate(number, 0)
        os.lseek(number, 0, os.SEEK_SET)
        line = " ".join(text.split())
        return "".join(c if c.isprintable() else "?" for c in line)[:_MOST_SHOWN]


def _alarm(seconds: float) -> None:
    """Let the system end this process after so many seconds; 0 for never."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _address_space() -> int:
    """Return the bytes of this process's address space; 0 where it is not known."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _limit_memory(base: int, needed: int) -> None:
    if base:
        _limit("RLIMIT_AS", base + math.ceil(1.1 * needed) + _SLACK)


def _limit(name: str, value: int) -> None:
    if resource is None:
        return
    kind = getattr(resource, name)
    _, hard = resource.getrlimit(kind)
    with contextlib.suppress(OSError, ValueError):  # not every system has every limit
        resource.setrlimit(kind, (value, hard))


def _mb(size: int) -> int:
    return math.ceil(size / 1e6)
