"""RAW files as cameras write them (DNG), with a preview in JPEG, written byte by byte."""

from __future__ import annotations

import io
import struct
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

__all__ = ["dng", "quarters"]

# Tag -> type and values; a text, or whole numbers, or pairs of them.
Tags: TypeAlias = dict[int, tuple[int, Any]]

_BYTE, _ASCII, _SHORT, _LONG, _SIGNED_RATIONAL = 1, 2, 3, 4, 10
_FORMATS = {_BYTE: "B", _SHORT: "H", _LONG: "I", _SIGNED_RATIONAL: "i"}
_TURNS = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90,
          8: Image.Transpose.ROTATE_270}  # fmt: skip


def quarters(width: int, height: int) -> Image.Image:
    """Return red and green above, blue and white below."""
    image = Image.new("RGB", (width, height), "white")
    half = (width // 2, height // 2)
    for box, colour in (((0, 0), "red"), ((half[0], 0), (0, 160, 0)), ((0, half[1]), "blue")):
        image.paste(Image.new("RGB", half, colour), box)
    return image


def dng(
    orientation: int = 1,
    *,
    preview: bool = True,
    upright_preview: bool = False,
    preview_exif: int | None = None,
) -> bytes:
    """Return a DNG of `quarters`; the sensor has 320 x 240 pixels.

    Args:
        orientation: EXIF's, of the RAW file.
        preview: Whether there is one of 160 x 120 pixels.
        upright_preview: The camera has turned the preview.
        preview_exif: Orientation in the preview's own EXIF data.
    """
    upright = quarters(*((240, 320) if orientation in (6, 8) else (320, 240)))
    stored = upright.transpose(_TURNS[orientation]) if orientation in _TURNS else upright
    colours = np.asarray(stored).astype(np.uint16) * 257
    samples = np.zeros(colours.shape[:2], np.uint16)  # red, green / green, blue
    for row, column, channel in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
        samples[row::2, column::2] = colours[row::2, column::2, channel]
    shown = upright if upright_preview else stored
    jpeg = io.BytesIO()
    exif = Image.Exif()
    if preview_exif is not None:
        exif[274] = preview_exif
    shown.resize((shown.width // 2, shown.height // 2)).save(jpeg, "JPEG", quality=95, exif=exif)
    about: Tags = {
        271: (_ASCII, "Fairphone"), 272: (_ASCII, "FP5"), 274: (_SHORT, [orientation]),
        50706: (_BYTE, [1, 4, 0, 0]), 50708: (_ASCII, "Fairphone FP5"),
        50721: (_SIGNED_RATIONAL, [1, 1, 0, 1, 0, 1] * 2 + [0, 1, 0, 1, 1, 1]),
        50778: (_SHORT, [21]),
    }  # fmt: skip
    sensor: Tags = {
        254: (_LONG, [0]), 258: (_SHORT, [16]), 259: (_SHORT, [1]), 262: (_SHORT, [32803]),
        277: (_SHORT, [1]), 33421: (_SHORT, [2, 2]), 33422: (_BYTE, [0, 1, 1, 2]),
    }  # fmt: skip
    shown_tags: Tags = {
        254: (_LONG, [1]), 258: (_SHORT, [8, 8, 8]), 259: (_SHORT, [7]), 262: (_SHORT, [6]),
        277: (_SHORT, [3]),
    }  # fmt: skip
    main = _image(sensor, stored.size, samples.tobytes())
    if not preview:
        return _file({**about, **main[0]}, main[1], [])
    small = (shown.width // 2, shown.height // 2)
    first = _image(shown_tags, small, jpeg.getvalue())
    return _file({**about, **first[0]}, first[1], [main])


def _image(tags: Tags, size: tuple[int, int], data: bytes) -> tuple[Tags, bytes]:
    width, height = size
    made = {256: (_LONG, [width]), 257: (_LONG, [height]), 278: (_LONG, [height]),
            279: (_LONG, [len(data)])}  # fmt: skip
    return {**tags, **made}, data


def _file(tags: Tags, data: bytes, below: list[tuple[Tags, bytes]]) -> bytes:
    """Put a directory, its pixels, and directories below it into a TIFF."""
    places = []
    body = bytearray(struct.pack("<2sHI", b"II", 42, 0))
    for own, pixels in below:
        at = len(body)
        body += pixels + bytes(len(pixels) % 2)
        places.append(len(body))
        body += _directory({**own, 273: (_LONG, [at])}, len(body))
    at = len(body)
    body += data + bytes(len(data) % 2)
    own = {**tags, 273: (_LONG, [at]), **({330: (_LONG, places)} if places else {})}
    struct.pack_into("<I", body, 4, len(body))
    body += _directory(own, len(body))
    return bytes(body)


def _directory(tags: Tags, at: int) -> bytes:
    entries, more = bytearray(), bytearray()
    start = at + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        if kind == _ASCII:
            packed, count = values.encode() + b"\0", len(values) + 1
        else:
            packed = struct.pack(f"<{len(values)}{_FORMATS[kind]}", *values)
            count = len(values) // (2 if kind == _SIGNED_RATIONAL else 1)
        if len(packed) > 4:
            place = struct.pack("<I", start + len(more))
            more += packed + bytes(len(packed) % 2)
        else:
            place = packed.ljust(4, b"\0")
        entries += struct.pack("<HHI", tag, kind, count) + place
    return struct.pack("<H", len(tags)) + bytes(entries) + bytes(4) + bytes(more)
