"""Transparency, modes, orientation and frames: what a viewer shows on a white page."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from png_files import GREY, PALETTE, RGB, png, words

import edje_qdrant
from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import FORMATS, open_upright, to_rgb

AVIF = pytest.param(
    "AVIF", marks=pytest.mark.skipif("AVIF" not in FORMATS, reason="Pillow before 11.3")
)
DARK_RED = (100, 0, 0)
DARK_RED_AT_HALF = (177, 127, 127)  # on white: 100 * 128 / 255 + 255 * 127 / 255


def shown(content: bytes) -> list[tuple[int, ...]]:
    """Return the pixels of a file's first row."""
    row = np.asarray(open_upright(io.BytesIO(content), "a"))[0]
    return [tuple(pixel) for pixel in row.tolist()]


def saved(image: Image.Image, kind: str, **more: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV",
             "I", "F", "I;16", "I;16B", "RGBX"],
)  # fmt: skip
def test_every_mode_becomes_rgb(mode: str) -> None:
    rgb = to_rgb(Image.new(mode, (5, 3)))
    assert rgb.mode == "RGB"
    assert rgb.size == (5, 3)


def test_no_other_function_converts_images_to_rgb() -> None:
    package = Path(edje_qdrant.__file__).parent
    others = [path for path in package.rglob("*.py") if package / "images" not in path.parents]
    assert len(others) > 100
    assert not [path for path in others if ".convert(" in path.read_text(encoding="utf-8")]


def test_an_opaque_rgb_image_stays_itself() -> None:
    image = Image.new("RGB", (5, 3), DARK_RED)
    assert to_rgb(image) is image


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "ICO", "GIF", "JPEG2000", AVIF])
def test_a_black_drawing_on_transparent_ground_becomes_black_on_white(kind: str) -> None:
    drawing = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    drawing.paste((0, 0, 0, 255), (0, 0, 8, 32))
    more = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}}.get(kind, {})
    pixels = shown(saved(drawing, kind, **more))
    assert set(pixels[:8]) == {(0, 0, 0)}
    assert set(pixels[8:]) == {(255, 255, 255)}


@pytest.mark.parametrize("mode", ["RGBA", "RGBa"])
def test_half_transparent_colours_are_mixed_with_white(mode: str) -> None:
    image = Image.new("RGBA", (1, 1), (*DARK_RED, 128)).convert(mode)
    pixel = to_rgb(image).getpixel((0, 0))
    # A premultiplied value of 8 bits holds the colour to within 1.
    assert np.abs(np.subtract(pixel, DARK_RED_AT_HALF)).max() <= (1 if mode == "RGBa" else 0)


@pytest.mark.parametrize("mode", ["LA", "La"])
def test_half_transparent_grey_is_mixed_with_white(mode: str) -> None:
    image = Image.new("LA", (1, 1), (100, 128)).convert(mode)
    assert abs(to_rgb(image).getpixel((0, 0))[0] - 177) <= 1


def test_a_palette_with_an_alpha_channel() -> None:
    image = Image.new("RGB", (2, 1), DARK_RED).quantize(2).convert("PA")
    image.putalpha(Image.frombytes("L", (2, 1), bytes([0, 128])))
    assert [to_rgb(image).getpixel((x, 0)) for x in (0, 1)] == [
        (255, 255, 255), DARK_RED_AT_HALF,
    ]  # fmt: skip


def test_a_palette_of_which_one_colour_is_transparent() -> None:
    palette = (b"PLTE", bytes([9, 9, 9, *DARK_RED]))
    content = png(
        np.array([[0, 1]]), colour=PALETTE, bits=1, chunks=(palette, (b"tRNS", bytes([0])))
    )
    assert shown(content) == [(255, 255, 255), DARK_RED]


def test_a_palette_with_an_opacity_for_each_colour() -> None:
    palette = (b"PLTE", bytes([9, 9, 9, *DARK_RED, *DARK_RED]))
    chunks = (palette, (b"tRNS", bytes([0, 128, 255])))
    content = png(np.array([[0, 1, 2]]), colour=PALETTE, chunks=chunks)
    assert shown(content) == [(255, 255, 255), DARK_RED_AT_HALF, DARK_RED]


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_one_transparent_grey_at_every_depth(bits: int) -> None:
    top = 2**bits - 1
    values = np.array([[0, top, top // 2, top]]) if bits > 1 else np.array([[0, 1, 0, 1]])
    content = png(values, colour=GREY, bits=bits, chunks=((b"tRNS", words(int(values[0, 2]))),))
    grey = [pixel[0] for pixel in shown(content)]
    assert grey == ([255] * 4 if bits == 1 else [0, 255, 255, 255])
    kept = shown(png(values, colour=GREY, bits=bits))[2][0]
    assert kept == (0 if bits == 1 else round(255 * (top // 2) / top))


@pytest.mark.parametrize("bits", [8, 16])
def test_one_transparent_colour(bits: int) -> None:
    factor = 1 if bits == 8 else 257
    values = np.array([[[9, 8, 7], [9, 8, 6], [200, 0, 0]]]) * factor
    if bits == 16:
        values[0, 1] = values[0, 0] + [0, 0, 1]  # equal in the upper byte
    key = (b"tRNS", words(*(int(value) for value in values[0, 0])))
    pixels = shown(png(values, colour=RGB, bits=bits, chunks=(key,)))
    assert pixels[0] == (255, 255, 255)
    assert pixels[1] == ((9, 8, 6) if bits == 8 else (9, 8, 7))


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "torn.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as image, pytest.raises(ImageReadError) as caught:
        to_rgb(image)
    assert caught.value.path == str(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", AVIF])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_of_every_format(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.new("RGB", (32, 16), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 8, 8))  # in the top left corner as stored
    more = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}, "JPEG": {"quality": 100}}
    content = saved(image, kind, exif=exif.tobytes(), **more.get(kind, {}))
    turned = np.asarray(open_upright(io.BytesIO(content), "a"))[..., 0]  # (H, W)
    assert turned.shape == ((32, 16) if orientation >= 5 else (16, 32))
    down, right = (np.argmax(turned.sum(axis)) > 7 for axis in (1, 0))
    # The corner of row 0, column 0 is shown here (CIPA DC-008): down, right.
    corners = [(0, 0), (0, 1), (1, 1), (1, 0), (0, 0), (0, 1), (1, 1), (1, 0)]
    assert (down, right) == corners[orientation - 1]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", AVIF])
def test_of_several_frames_the_first_is_read(kind: str) -> None:
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("white", "black"))
    content = saved(first, kind, save_all=True, append_images=[second])
    assert shown(content)[0] == (255, 255, 255)


def test_the_default_image_of_an_animated_png_is_skipped() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "white", "black")]
    content = saved(frames[0], "PNG", save_all=True, default_image=True, append_images=frames[1:])
    assert shown(content)[0] == (255, 255, 255)


def test_nothing_surrounds_a_small_first_frame_of_a_gif() -> None:
    content = bytearray(saved(Image.new("RGB", (2, 1), DARK_RED), "GIF"))
    content[6:10] = struct.pack("<2H", 5, 1)  # the canvas
    at = content.index(b",", 13)
    content[at + 1 : at + 5] = struct.pack("<2H", 2, 0)  # where the frame lies
    white = (255, 255, 255)
    assert shown(bytes(content)) == [white, white, DARK_RED, DARK_RED, white]


def test_the_largest_image_of_an_icon_is_read() -> None:
    content = saved(Image.new("RGB", (64, 64), DARK_RED), "ICO", sizes=[(16, 16), (48, 48)])
    assert open_upright(io.BytesIO(content), "a").size == (48, 48)
