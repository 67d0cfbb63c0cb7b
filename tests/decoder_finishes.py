"""What tests let decoder processes do with an image; the processes import this module."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edje_qdrant.images.resize import Resize


def hang(image: Image.Image) -> bytes:
    time.sleep(600)
    return b""


def be_killed(image: Image.Image) -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    return b""


def fill_memory(image: Image.Image) -> bytes:
    return bytes(bytearray(8 << 30))


def write_and_fail(image: Image.Image) -> bytes:
    os.write(2, b"TIFFReadDirectory: Warning,\n  Unknown \x1b[31mfield\n")
    raise ValueError("bad strip")


def write(image: Image.Image) -> bytes:
    os.write(1, b"on stdout ")
    os.write(2, b"on stderr")
    return b"done"


def process(image: Image.Image) -> bytes:
    return f"{os.getpid()} {'torch' in sys.modules}".encode()


def foreign(image: Image.Image) -> str:
    return "neither pixels nor bytes"


@dataclass(frozen=True)
class Hanging:
    """Say in a file which process it is, then hang; an encoder's `resize`."""

    said: str

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        Path(self.said).write_text(str(os.getpid()))
        time.sleep(600)
        return np.zeros((1, 1, 3), np.uint8)


@dataclass(frozen=True)
class Span:
    """Return the monotonic times of begin and end, some time apart."""

    seconds: float

    def __call__(self, image: Image.Image) -> bytes:
        began = time.monotonic()
        time.sleep(self.seconds)
        return f"{began} {time.monotonic()}".encode()


@dataclass(frozen=True)
class Fragile:
    """An encoder's `resize` that fails at images of three widths, and resizes others."""

    resize: Resize

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        actions = {101: hang, 102: be_killed, 103: fill_memory}
        if image.width in actions:
            actions[image.width](image)
        return self.resize(image)
