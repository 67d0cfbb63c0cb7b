"""Decode images, with what their files say of the samples and with all bits of deep colours."""

from __future__ import annotations

import io
import math
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["DEEP_MODES", "Samples", "read_samples"]

#: Pillow's modes of one channel with more than 8 bits.
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")

# TIFF tags.
_PHOTOMETRIC, _SAMPLE_FORMAT, _BITS, _PLANES = 262, 339, 258, 284
_LOWEST, _HIGHEST, _NO_DATA = 340, 341, 42113
_UNSIGNED, _SIGNED = 1, 2
_SEPARATE = 2

# Pillow's names of sample layouts.
_GREY_ALPHA = "LA;16B"  # decoded to RGBA
_KEY_FACTORS = {"L;2": 85, "L;4": 17}
_NATIVE = {
    f"{kind}{order}{sign}": f"{kind}N{sign}"
    for kind, sign in (("I;16", "S"), ("I;32", "S"), ("F;32", "F"))
    for order in ("", "B")
}

_DARK = 64  # the upper byte of values beyond 14 bits
_HEADER_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Samples:
    """What a file says of its samples, and those that Pillow would cut to 8 bits.

    Attributes:
        low: The value that is black, if the file says so.
        high: The value that is white, if the file says so.
        inverted: The highest value is black (TIFF's WhiteIsZero), and Pillow did not turn it.
        signed: Whether integers are signed; None if the file does not say.
        no_data: The value of pixels without data (GDAL's tag in a TIFF).
        png_bits: Significant bits of a 16-bit PNG, from its chunk sBIT.
        key_factor: What Pillow multiplies the grey levels of a PNG of 2 or 4 bits with, but not the
            level that is transparent.
        box: Left, top, right and bottom of what a GIF's first frame covers, if not everything.
        deep: 16-bit samples of a colour image, `(H, W, C)` uint16; None for other images.
    """

    low: float | None = None
    high: float | None = None
    inverted: bool = False
    signed: bool | None = None
    no_data: float | None = None
    png_bits: int | None = None
    key_factor: int = 1
    box: tuple[int, int, int, int] | None = None
    deep: NDArray[np.uint16] | None = None


def read_samples(image: Image.Image) -> Samples:
    """Decode an image, and return what its file says of its samples.

    An image that is decoded already says less: not what only the file's header holds.
    """
    tags: Any = getattr(image, "tag_v2", {})
    _correct_tiles(image, tags)
    tiles: Sequence[Any] = getattr(image, "tile", ())
    raw_mode = _raw_mode(tiles)
    one_channel = image.mode in DEEP_MODES
    colour = ";16" in raw_mode and not one_channel
    signed_bytes = image.mode == "L" and _first(tags.get(_SAMPLE_FORMAT)) == _SIGNED
    samples = Samples(key_factor=_KEY_FACTORS.get(raw_mode, 1), box=_box(image, tiles))
    if one_channel or colour or signed_bytes:
        samples = _of_tags(tags) if tags else _of_header(image, tiles)
    if colour:
        samples = replace(samples, deep=_load_16_bits(image, raw_mode, samples))
    image.load()
    return samples


def _box(image: Image.Image, tiles: Sequence[Any]) -> tuple[int, int, int, int] | None:
    """Return the part of a GIF that its first frame covers; viewers show nothing around it."""
    box = tiles[0][1] if image.format == "GIF" and tiles else None
    return None if box is None or box == (0, 0, *image.size) else box


def _of_tags(tags: Mapping[int, Any]) -> Samples:
    """Return what the tags of a TIFF say."""
    low, high = _finite(tags.get(_LOWEST)), _finite(tags.get(_HIGHEST))
    if low is not None and high is not None and low >= high:
        low = high = None
    sample_format, bits = _first(tags.get(_SAMPLE_FORMAT, _UNSIGNED)), _first(tags.get(_BITS))
    if high is None and sample_format == _UNSIGNED and isinstance(bits, int) and 8 < bits < 16:
        low, high = None, float(2**bits - 1)
    return Samples(
        low=low,
        high=high,
        inverted=tags.get(_PHOTOMETRIC) == 0,
        signed={_UNSIGNED: False, _SIGNED: True}.get(sample_format),
        no_data=_finite(tags.get(_NO_DATA)),
    )


def _of_header(image: Image.Image, tiles: Sequence[Any]) -> Samples:
    """Return what the headers of other formats say."""
    if image.format == "PNG":
        return Samples(png_bits=_significant_bits(_header(image)))
    if image.format == "JPEG2000":  # Pillow shifts samples of fewer bits to the upper ones
        bits = _jpeg_2000_bits(_header(image))
        return Samples(high=float((2**bits - 1) << (16 - bits)) if bits and bits < 16 else None)
    if image.format == "HEIF":  # pi-heif shifts grey of more than 8 bits to the upper ones
        bits = image.info.get("bit_depth")
        return Samples(
            high=float((2**bits - 1) << (16 - bits))
            if isinstance(bits, int) and 8 < bits < 16
            else None
        )
    if image.format == "PPM" and tiles and tiles[0][0] in ("ppm", "ppm_plain"):
        # Pillow scales samples with another maximum to 16 bits.
        maximum = tiles[0][3] if isinstance(tiles[0][3], int) else tiles[0][3][-1]
        return Samples(high=None if maximum == 65535 else 65535.0)
    return Samples()


def _jpeg_2000_bits(header: bytes) -> int | None:
    start = header.find(b"\xff\x4f\xff\x51")  # the codestream's first two markers
    depth = header[start + 42 : start + 43]
    return (depth[0] & 0x7F) + 1 if start >= 0 and depth else None


def _significant_bits(header: bytes) -> int | None:
    """Return the greatest number of a PNG's chunk sBIT."""
    at = 8
    while at + 8 <= len(header):
        length, kind = struct.unpack(">I4s", header[at : at + 8])
        if kind == b"sBIT":
            bits = max(header[at + 8 : at + 8 + length], default=0)
            return bits if 0 < bits <= 16 else None
        if kind in (b"PLTE", b"IDAT"):  # sBIT comes before them
            return None
        at += length + 12
    return None


def _header(image: Image.Image) -> bytes:
    file = getattr(image, "fp", None)
    if file is None or not getattr(image, "tile", ()):
        return b""
    at = file.tell()
    file.seek(0)
    header: bytes = file.read(_HEADER_BYTES)
    file.seek(at)
    return header


def _raw_mode(tiles: Sequence[Any]) -> str:
    """Return how samples lie in the file, in Pillow's words; "" if the image is decoded."""
    if not tiles:
        return ""
    decoder, _, _, args = tiles[0]
    if decoder == "ppm":
        return "RGB;16B" if args[0] == "RGB" and args[-1] == 65535 else ""
    raw_mode = args if isinstance(args, str) else args[0] if args else ""
    return raw_mode if isinstance(raw_mode, str) else ""


def _correct_tiles(image: Any, tags: Any) -> None:
    """Correct how Pillow is about to read the samples of a TIFF, where it would return noise."""
    if not tags:
        return
    # It takes 16-bit channels that lie one after the other for 8-bit samples.
    if tags.get(_PLANES) == _SEPARATE and _first(tags.get(_BITS)) == 16:
        order = "L" if tags.prefix == b"II" else "B"
        image.tile = [
            _changed(tile, "raw", (f"{tile[3][0].partition(';')[0]};16{order}", *tile[3][1:]))
            if tile[0] == "raw"
            else tile
            for tile in image.tile
        ]
    # libtiff has put the bytes of compressed samples into the machine's order.
    image.tile = [
        _changed(tile, "libtiff", (_NATIVE.get(tile[3][0], tile[3][0]), *tile[3][1:]))
        if tile[0] == "libtiff"
        else tile
        for tile in image.tile
    ]


def _load_16_bits(image: Image.Image, raw_mode: str, samples: Samples) -> NDArray[np.uint16] | None:
    """Decode a colour image of 16 bits a channel.

    Pillow has no modes for them and keeps the upper byte. The lower byte is decoded from a second
    copy, as if the bytes of a sample were swapped. That is done only if it matters: when the image
    is dark, when white is another value than 65,535, when one colour stands for transparent, and
    for grey with alpha.

    Returns:
        `(H, W, C)`; None if the upper bytes, which the image holds then, are enough.
    """
    swapped = _swapped(raw_mode)
    if swapped is None or getattr(image, "tell", int)() != 0:
        return None
    first: Any = image
    at = first.fp.tell()
    first.fp.seek(0)
    second: Any = Image.open(io.BytesIO(first.fp.read()), formats=[str(image.format)])
    first.fp.seek(at)
    first.tile = [_with_raw_mode(tile, _raw_mode([tile])) for tile in first.tile]
    first.load()
    upper = np.asarray(image)
    exact = samples.high is not None or "transparency" in image.info or raw_mode == _GREY_ALPHA
    if not exact and upper[..., :3].max(initial=0) >= _DARK:
        return None
    _correct_tiles(second, getattr(second, "tag_v2", {}))
    second.tile = [_with_raw_mode(tile, _swapped(_raw_mode([tile]))) for tile in second.tile]
    second.load()
    lower = np.asarray(second)
    if raw_mode == _GREY_ALPHA:  # decoded to their four bytes, in the file's order
        upper, lower = lower[..., 0::2], lower[..., 1::2]
    values: NDArray[np.uint16] = upper.astype(np.uint16) << 8 | lower
    return values


def _swapped(raw_mode: str) -> str | None:
    if raw_mode == _GREY_ALPHA:
        return "RGBA"
    layout, _, order = raw_mode.partition(";16")
    if layout not in ("RGB", "RGBX", "RGBA", "R", "G", "B", "A"):
        return None
    native = "L" if sys.byteorder == "little" else "B"
    return f"{layout};16{'B' if (native if order == 'N' else order) == 'L' else 'L'}"


def _with_raw_mode(tile: Any, raw_mode: str | None) -> Any:
    decoder, _, _, args = tile
    if decoder == "ppm":  # Pillow's own decoder of it rounds to 8 bits
        return _changed(tile, "raw", (raw_mode, 0, 1))
    return _changed(tile, decoder, raw_mode if isinstance(args, str) else (raw_mode, *args[1:]))


def _changed(tile: Any, decoder: str, args: Any) -> Any:
    """Return a tile with another decoder and arguments: tuples, named ones in newer Pillows."""
    changed = (decoder, tile[1], tile[2], args)
    return tile._make(changed) if hasattr(tile, "_make") else changed


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and value else value


def _finite(value: Any) -> float | None:
    value = _first(value)
    try:
        number = float(value.strip("\0 ")) if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
