"""Messages between a decoder pool and its processes.

Requests are pickled. Answers are JSON and raw bytes, since a process that decoded a hostile file
may send anything.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edje_qdrant.images.parts import Part

__all__ = ["GRANTED", "Finish", "Request", "receive_exactly", "receive_header", "send"]

#: What a decoder process makes of an upright RGB image: an array of uint8, or a file's bytes.
Finish: TypeAlias = Callable[[Image.Image], "NDArray[np.uint8] | bytes"]

#: Sent to a process that asked for memory, once it may go on.
GRANTED = b"+"

_LENGTH = 4
_MOST = 1 << 20  # bytes of a header


@dataclass(frozen=True, slots=True)
class Request:
    """Ask for one image.

    Attributes:
        name: Names the image in errors.
        path: The file, or None if its content follows.
        content_bytes: Size of the content that follows.
        finish: Makes the answer of the upright RGB image; None returns that image's pixels.
        max_pixels: Larger images are refused before they are decoded.
        max_bytes: Larger files are refused before they are read.
        allowance: Bytes of memory for which the process need not ask.
        memory: Most bytes for which it may ask.
        seconds: The process ends itself when decoding takes much longer, as its parent may have
            been killed.
        part: The frame or the page that is asked for, instead of a file.
        survey: Ask which parts the file of `part` has, and decode nothing: `header` by what it
            says at its beginning, `whole` by reading it to its end.
    """

    name: str
    path: str | None
    content_bytes: int
    finish: Finish | None
    max_pixels: int
    max_bytes: int
    allowance: int
    memory: int
    seconds: float
    part: Part | None = None
    survey: Literal["", "header", "whole"] = ""


def send(channel: socket.socket, header: bytes, body: Any = b"") -> None:
    """Send a header and a body, each a buffer of bytes.

    Raises:
        OSError: The other side is gone.
    """
    channel.sendall(len(header).to_bytes(_LENGTH, "big") + header)
    if len(body):
        channel.sendall(body)


def receive_header(
    channel: socket.socket, receive: Callable[[socket.socket, memoryview], None]
) -> bytes:
    """Receive a header.

    Raises:
        EOFError: The other side is gone.
        ValueError: It is longer than any header.
        OSError: The connection failed.
    """
    prefix = bytearray(_LENGTH)
    receive(channel, memoryview(prefix))
    length = int.from_bytes(prefix, "big")
    if length > _MOST:
        raise ValueError(f"a header of {length} bytes")
    header = bytearray(length)
    receive(channel, memoryview(header))
    return bytes(header)


def receive_exactly(channel: socket.socket, into: memoryview) -> None:
    """Fill a buffer.

    Raises:
        EOFError: The other side is gone.
        OSError: The connection failed.
    """
    while len(into):
        count = channel.recv_into(into)
        if count == 0:
            raise EOFError
        into = into[count:]
