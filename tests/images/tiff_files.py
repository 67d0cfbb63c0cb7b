"""TIFF files of kinds that Pillow does not write, written byte by byte."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

BITS, PHOTOMETRIC, STRIPS, SAMPLES, STRIP_BYTES = 258, 262, 273, 277, 279
PLANAR, EXTRA, FORMAT, LOWEST, HIGHEST, NO_DATA = 284, 338, 339, 340, 341, 42113
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
UNSIGNED, SIGNED, FLOAT = 1, 2, 3

Tag = tuple[str, tuple[float, ...] | bytes]
_TYPES = {"B": 1, "s": 2, "H": 3, "I": 4, "h": 8, "f": 11, "d": 12}


def tiff(
    samples: NDArray[np.generic],
    *,
    photometric: int = BLACK_IS_ZERO,
    sample_format: int | None = None,
    bits: int | None = None,
    data: bytes | None = None,
    planar: bool = False,
    more: dict[int, Tag] | None = None,
    order: str = "<",
) -> bytes:
    """Return an uncompressed TIFF.

    Args:
        samples: `(H, W)` or `(H, W, C)`.
        bits: Bits of a sample, if other than those of the array's type; `data` holds them packed.
        data: The pixels as they lie in the file.
        planar: Channels lie one after the other.
        more: Other tags, or other values of tags: tag -> type and values.
        order: "<" or ">".
    """
    height, width = samples.shape[:2]
    channels = samples.shape[2] if samples.ndim == 3 else 1
    if sample_format is None:
        sample_format = {"u": UNSIGNED, "i": SIGNED, "f": FLOAT}[samples.dtype.kind]
    if data is None:
        laid = np.moveaxis(samples, 2, 0) if planar else samples
        data = np.ascontiguousarray(laid).astype(samples.dtype.newbyteorder(order)).tobytes()
    part = len(data) // channels if planar else len(data)
    strips = range(0, len(data), part) if part else (0,)
    tags: dict[int, Tag] = {
        256: ("I", (width,)),
        257: ("I", (height,)),
        BITS: ("H", (bits or 8 * samples.dtype.itemsize,) * channels),
        259: ("H", (1,)),
        PHOTOMETRIC: ("H", (photometric,)),
        STRIPS: ("I", tuple(8 + start for start in strips)),
        SAMPLES: ("H", (channels,)),
        278: ("I", (height,)),
        STRIP_BYTES: ("I", (part,) * len(strips)),
        PLANAR: ("H", (2 if planar else 1,)),
        FORMAT: ("H", (sample_format,) * channels),
        **(more or {}),
    }
    directory = 8 + len(data) + len(data) % 2
    beyond = directory + 2 + 12 * len(tags) + 4
    entries, rest = b"", b""
    for tag in sorted(tags):
        kind, values = tags[tag]
        if isinstance(values, bytes):
            packed, count = values, len(values)
        else:
            packed, count = struct.pack(f"{order}{len(values)}{kind}", *values), len(values)
        place = packed.ljust(4, b"\0")
        if len(packed) > 4:
            place = struct.pack(f"{order}I", beyond + len(rest))
            rest += packed + bytes(len(packed) % 2)
        entries += struct.pack(f"{order}HHI", tag, _TYPES[kind], count) + place
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, directory)
    return (
        head + data + bytes(len(data) % 2) + struct.pack(f"{order}H", len(tags)) + entries
        + bytes(4) + rest
    )  # fmt: skip
