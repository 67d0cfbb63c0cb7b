"""PNG files of kinds that Pillow does not write, written byte by byte."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6


def png(
    samples: NDArray[np.integer],
    *,
    colour: int,
    bits: int = 8,
    chunks: tuple[tuple[bytes, bytes], ...] = (),
) -> bytes:
    """Return a PNG with these samples, `(H, W)` or `(H, W, C)`, and chunks before its pixels."""
    height, width = samples.shape[:2]
    values = samples.reshape(height, -1)
    if bits == 16:
        rows = values.astype(">u2").view(np.uint8)
    elif bits == 8:
        rows = values.astype(np.uint8)
    else:
        single = (values[..., None] >> np.arange(bits)[::-1]) & 1  # (H, W, bits)
        rows = np.packbits(single.reshape(height, -1).astype(np.uint8), axis=1)
    pixels = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">2I5B", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def words(*values: int) -> bytes:
    """Return numbers as a chunk holds them: two bytes each."""
    return struct.pack(f">{len(values)}H", *values)
