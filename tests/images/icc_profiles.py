"""Small ICC profiles of version 2, written byte by byte."""

from __future__ import annotations

import itertools
import struct
from functools import cache

import numpy as np
from numpy.typing import NDArray

D50 = (0.9642, 1.0, 0.8249)
D65 = (0.3127, 0.329)
SRGB = ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06))
DISPLAY_P3 = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))


def rgb_profile(primaries: tuple[tuple[float, float], ...], gamma: float) -> bytes:
    """Return a profile of a display with these primaries (x, y), white D65 and a gamma."""
    white = xyz(D65)
    columns = np.stack([xyz(point) for point in primaries], axis=1)  # (3, 3)
    columns = adapt(white) @ (columns * np.linalg.solve(columns, white))
    tags = {b"wtpt": xyz_tag(np.array(D50))}
    for number, name in enumerate((b"r", b"g", b"b")):
        tags[name + b"XYZ"] = xyz_tag(columns[:, number])
        tags[name + b"TRC"] = gamma_tag(gamma)
    return profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey_profile(gamma: float) -> bytes:
    return profile(
        b"mntr", b"GRAY", b"XYZ ", {b"wtpt": xyz_tag(np.array(D50)), b"kTRC": gamma_tag(gamma)}
    )


@cache
def cmyk_profile() -> bytes:
    """Return a profile of a printer whose inks are duller than plain CMYK: 9 levels of each."""
    grid = 9
    paper = np.array([0.95, 0.95, 0.92])
    inks = np.array([[0.1, 0.55, 0.8], [0.8, 0.15, 0.45], [0.95, 0.85, 0.1], [0.15, 0.15, 0.15]])
    levels = np.linspace(0, 1, grid)
    table = bytearray()
    for amounts in itertools.product(levels, repeat=4):  # cyan changes slowest
        light = paper.copy()
        for amount, ink in zip(amounts, inks, strict=True):
            light = light * (1 - amount * (1 - ink))
        table += lab16(light**2.2)
    ends = struct.pack(">2H", 0, 65535)
    lut = b"mft2" + bytes(4) + struct.pack(">4B", 4, 3, grid, 0)
    lut += (65536 * np.eye(3)).astype(">i4").tobytes()
    lut += struct.pack(">2H", 2, 2) + ends * 4 + bytes(table) + ends * 3
    return profile(b"prtr", b"CMYK", b"Lab ", {b"wtpt": xyz_tag(np.array(D50)), b"A2B0": lut})


def profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        **tags,
    }
    table, data, start = b"", b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">2I", start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = struct.pack(">I4sI", start + len(data), bytes(4), 0x02100000) + kind + space + connection
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += struct.pack(">3i", *(round(value * 65536) for value in D50)) + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + data


def xyz(point: tuple[float, float]) -> NDArray[np.float64]:
    x, y = point
    return np.array([x / y, 1, (1 - x - y) / y])


def adapt(white: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Bradford's matrix from a white to D50: `(3, 3)`."""
    cone = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    matrix: NDArray[np.float64] = (
        np.linalg.inv(cone) @ np.diag((cone @ np.array(D50)) / (cone @ white)) @ cone
    )
    return matrix


def lab16(linear: NDArray[np.float64]) -> bytes:
    """Return the Lab values of linear light in sRGB's primaries, in ICC's 16-bit form."""
    white = xyz(D65)
    columns = np.stack([xyz(point) for point in SRGB], axis=1)
    columns = adapt(white) @ (columns * np.linalg.solve(columns, white))
    ratio = columns @ linear / np.array(D50)
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    lightness, a, b = 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])
    coded = (lightness * 652.8, (a + 128) * 256, (b + 128) * 256)
    return struct.pack(">3H", *(round(min(max(value, 0), 65280)) for value in coded))


def xyz_tag(value: NDArray[np.float64]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(part * 65536) for part in value))


def gamma_tag(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
