"""Deep and float samples: never black or white in silence."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import tiff_files as t
from PIL import Image
from png_files import GREY, GREY_ALPHA, RGB, RGBA, png

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import open_upright, to_rgb

TWELVE_BITS = np.array([[0, 1024, 2048, 4095]], dtype=np.uint16)
SHOWN = [0, 64, 128, 255]
COLOURS = np.stack([TWELVE_BITS, TWELVE_BITS[:, ::-1], TWELVE_BITS // 2], -1)  # (1, 4, 3)
COLOURS_SHOWN = [[0, 255, 0], [64, 128, 32], [128, 64, 64], [255, 0, 127]]
PACKED = bytes([0x00, 0x04, 0x00, 0x80, 0x0F, 0xFF])  # TWELVE_BITS without padding
DEFLATE = {259: ("H", (8,))}


def shown(content: bytes) -> list[Any]:
    """Return the first row: levels of grey, or colours if there are any."""
    row = np.asarray(open_upright(io.BytesIO(content), "a"))[0]
    return (row[:, 0] if (row == row[:, :1]).all() else row).tolist()


def deflated(values: np.ndarray[Any, Any], order: str) -> bytes:
    return zlib.compress(values.astype(values.dtype.newbyteorder(order)).tobytes())


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PGM"])
def test_integers_of_fewer_bits_in_16_fill_the_range(kind: str, bits: int) -> None:
    top = 2**bits - 1
    values = np.array([[0, top // 2, top]], dtype=np.uint16)
    content = {
        "PNG": png(values, colour=GREY, bits=16),
        "TIFF": t.tiff(values),
        "PGM": b"P5 3 1 65535\n" + values.astype(">u2").tobytes(),
    }[kind]
    assert shown(content) == [0, round(255 * (top // 2) / top), 255]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("packing", ["plain", "planar", "deflate"])
@pytest.mark.parametrize("factor", [1, 16])
def test_colours_of_12_bits_in_16(order: str, packing: str, factor: int) -> None:
    values = COLOURS * np.uint16(factor)
    more: dict[str, Any] = {"planar": {"planar": True}, "plain": {}}.get(
        packing, {"data": deflated(values, order), "more": DEFLATE}
    )
    pixels = shown(t.tiff(values, photometric=t.RGB, order=order, **more))
    # Bright images keep the upper byte, which is at most 1 less than the rounded value.
    assert np.abs(np.subtract(pixels, COLOURS_SHOWN)).max() <= (0 if factor == 1 else 1)


def test_colours_of_12_bits_in_16_in_other_formats() -> None:
    assert shown(png(COLOURS, colour=RGB, bits=16)) == COLOURS_SHOWN
    assert shown(b"P6 4 1 65535\n" + COLOURS.astype(">u2").tobytes()) == COLOURS_SHOWN


def test_deep_colours_with_alpha() -> None:
    half = np.full((1, 4, 1), 2048, dtype=np.uint16)  # of 4095
    expected = np.rint((np.array(COLOURS_SHOWN) * 128 + 255 * 127) / 255)
    pixels = shown(png(np.concatenate([COLOURS, half], -1), colour=RGBA, bits=16))
    assert np.abs(pixels - expected).max() <= 1
    grey = np.stack([TWELVE_BITS, half[..., 0]], -1)
    expected = np.rint((np.array(SHOWN) * 128 + 255 * 127) / 255)
    assert np.abs(shown(png(grey, colour=GREY_ALPHA, bits=16)) - expected).max() <= 1
    # Alpha of 16 bits beside dark colours that fill 12 of theirs.
    full = np.full((1, 4, 1), 65535, dtype=np.uint16)
    assert shown(png(np.concatenate([COLOURS, full], -1), colour=RGBA, bits=16)) == COLOURS_SHOWN


def sbit(*bits: int) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"sBIT", bytes(bits)),)


def test_a_png_says_how_many_bits_are_significant() -> None:
    # In the upper bits, as the format wants it: a dark image stays dark.
    dark = TWELVE_BITS // 4 * 16
    assert shown(png(dark, colour=GREY, bits=16, chunks=sbit(12))) == [0, 16, 32, 64]
    # In the lower bits, as some programs write it.
    assert shown(png(TWELVE_BITS, colour=GREY, bits=16, chunks=sbit(12))) == SHOWN
    assert shown(png(COLOURS, colour=RGB, bits=16, chunks=sbit(12, 12, 12))) == COLOURS_SHOWN
    # All 16 bits count: nothing is stretched.
    assert shown(png(TWELVE_BITS, colour=GREY, bits=16, chunks=sbit(16))) == [0, 4, 8, 16]


@pytest.mark.parametrize("order", "<>")
def test_a_tiff_says_what_is_white(order: str) -> None:
    def ends(kind: str, low: float, high: float, channels: int = 1) -> dict[int, t.Tag]:
        return {t.LOWEST: (kind, (low,) * channels), t.HIGHEST: (kind, (high,) * channels)}

    assert shown(t.tiff(TWELVE_BITS, order=order, more=ends("H", 0, 8190))) == [0, 32, 64, 128]
    colours = t.tiff(COLOURS, order=order, photometric=t.RGB, more=ends("H", 0, 4095, 3))
    assert shown(colours) == COLOURS_SHOWN
    floats = np.array([[-1, 0, 0.5, 1]], dtype=np.float32)
    assert shown(t.tiff(floats, order=order, more=ends("f", -1, 1))) == [0, 128, 191, 255]
    # An end that would leave everything white is not believed.
    assert shown(t.tiff(TWELVE_BITS[:, 1:], order=order, more=ends("H", 0, 9))) == SHOWN[1:]


def test_twelve_bits_without_padding() -> None:
    assert shown(t.tiff(TWELVE_BITS, bits=12, data=PACKED)) == SHOWN
    dark = t.tiff(np.array([[0, 255]], dtype=np.uint16), bits=12, data=bytes([0, 0, 0xFF]))
    assert shown(dark) == [0, 16]
    # So dark that nothing would be seen: as its twin in 16 bits.
    values = np.array([[0, 30]], dtype=np.uint16)
    dark = t.tiff(values, bits=12, data=bytes([0x00, 0x00, 0x1E]))
    assert shown(dark) == shown(t.tiff(values)) == [0, 121]


def test_a_pgm_says_what_is_white() -> None:
    assert shown(b"P5 4 1 4095\n" + TWELVE_BITS.astype(">u2").tobytes()) == SHOWN
    assert shown(b"P2 3 1 1023\n0 512 1023\n") == [0, 128, 255]
    # A dark image of 10 bits stays dark.
    assert shown(b"P5 2 1 1023\n" + struct.pack(">2H", 0, 64)) == [0, 16]


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_a_deep_jpeg_2000(bits: int) -> None:
    values = np.tile(np.array([0, 2**bits // 2, 2**bits - 1], dtype=np.uint16), (32, 11))
    buffer = io.BytesIO()
    Image.fromarray(values * 2 ** (16 - bits)).save(buffer, "JPEG2000", irreversible=False)
    content = buffer.getvalue()
    assert shown(content)[:3] == [0, 128, 255]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 0.25, 1]], np.float32), [0, 64, 255]),
        (np.array([[0, 0.2, 0.8]], np.float32), [0, 51, 204]),
        (np.array([[0, 100, 200]], np.float32), [0, 100, 200]),
        (np.array([[0, 0.002, 0.004]], np.float32), [0, 128, 255]),
        (np.array([[0, 5, 20]], np.float32), [0, 64, 255]),
        (np.array([[-100, 0, 100]], np.float32), [0, 128, 255]),
        (np.array([[-10, 0, 10]], np.int16), [0, 128, 255]),
        (np.array([[0, 2048, 4095]], np.int16), [0, 128, 255]),
        (np.array([[0, 100_000, 200_000]], np.int32), [0, 128, 255]),
        (np.array([[0, 10, 255]], np.int32), [0, 10, 255]),
        (np.array([[-128, 0, 127]], np.int8), [0, 128, 255]),
    ],
)
def test_floats_and_signed_integers(
    values: np.ndarray[Any, Any], expected: list[int], order: str, compressed: bool
) -> None:
    more: dict[str, Any] = {"data": deflated(values, order), "more": DEFLATE} if compressed else {}
    assert shown(t.tiff(values, order=order, **more)) == expected


def test_unsigned_integers_of_32_bits() -> None:
    values = np.array([[0, 2**31, 2**32 - 1]], dtype=np.uint32)
    assert shown(t.tiff(values)) == [0, 128, 255]


@pytest.mark.parametrize(
    ("values", "order"),
    [
        (TWELVE_BITS, "<"),
        (TWELVE_BITS.astype(np.float32) / np.float32(4095), "<"),
        (TWELVE_BITS.astype(np.float32) / np.float32(4095), ">"),
    ],
)
def test_white_is_zero(values: np.ndarray[Any, Any], order: str) -> None:
    content = t.tiff(values, photometric=t.WHITE_IS_ZERO, order=order)
    assert shown(content) == [255 - level for level in SHOWN]


def test_values_that_are_no_numbers() -> None:
    values = np.array([[np.nan, 0, 0.5, 1, np.inf, -np.inf]], dtype=np.float32)
    assert shown(t.tiff(values)) == [0, 0, 128, 255, 255, 0]
    with pytest.raises(ImageReadError, match="no pixel has a finite value"):
        shown(t.tiff(np.full((2, 2), np.nan, dtype=np.float32)))


@pytest.mark.parametrize("fill", [-9999, -3.4028234663852886e38, 1.7e38])
@pytest.mark.parametrize("said", [False, True])
def test_pixels_without_data_do_not_stretch_the_range(fill: float, said: bool) -> None:
    values = np.array([[fill, 0, 5, 10]], dtype=np.float32)
    more: dict[int, t.Tag] | None = {t.NO_DATA: ("s", f"{fill}\0".encode())} if said else None
    levels = shown(t.tiff(values, more=more))
    assert levels[1:] == [0, 128, 255]
    assert levels[0] == (255 if fill > 0 and not said else 0)


@pytest.mark.parametrize("fill", [-9999, -32768])
def test_heights_with_a_fill_value(fill: int) -> None:
    values = np.array([[fill, 0, 1500, 3000]], dtype=np.int16)
    assert shown(t.tiff(values)) == [0, 0, 128, 255]


def test_a_few_stray_values_do_not_leave_the_others_black() -> None:
    values = np.tile(np.array([0, 5, 10], dtype=np.float32), (100, 100))
    values[50, 7:9] = 1e6, 2e6
    assert shown(t.tiff(values))[:3] == [0, 128, 255]


def test_one_value_everywhere() -> None:
    def level(value: float, kind: type[np.generic]) -> int:
        return int(shown(t.tiff(np.full((2, 2), value, dtype=kind)))[0])

    assert level(0, np.uint16) == level(0, np.float32) == 0
    assert level(0.5, np.float32) == 128
    assert level(-7, np.float32) == level(7.3, np.float32) == 128


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.uint64])
def test_depths_that_are_not_read_are_refused(kind: type[np.generic]) -> None:
    with pytest.raises(ImageReadError):
        open_upright(io.BytesIO(t.tiff(np.zeros((2, 2), dtype=kind))), "a")


def test_images_that_are_passed_in() -> None:
    def levels(values: Any) -> list[int]:
        row: list[int] = np.asarray(to_rgb(Image.fromarray(values)))[0, :, 0].tolist()
        return row

    assert levels(np.array([[0, 2570, 51400, 65535]], np.uint16)) == [0, 10, 200, 255]
    assert levels(np.array([[0, 10, 200, 255]], np.int32)) == [0, 10, 200, 255]
    assert levels(np.array([[0, 0.5, 1]], np.float32)) == [0, 128, 255]
    with Image.open(io.BytesIO(png(COLOURS, colour=RGB, bits=16))) as image:
        assert np.asarray(to_rgb(image))[0].tolist() == COLOURS_SHOWN
