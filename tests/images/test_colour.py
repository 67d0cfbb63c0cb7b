"""Colours of ICC profiles, CMYK and PNG's gamma as sRGB."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from icc_profiles import ADOBE_RGB, DISPLAY_P3, SRGB, cmyk_profile, grey_profile, rgb_profile
from numpy.typing import NDArray
from PIL import Image, ImageCms
from png_files import GREY_ALPHA, RGB, png

from edje_qdrant.images import FORMATS, open_upright, to_rgb

AVIF = pytest.param(
    "AVIF", marks=pytest.mark.skipif("AVIF" not in FORMATS, reason="Pillow before 11.3")
)
NOISE = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
P3 = rgb_profile(DISPLAY_P3, 2.2)
# Computed from the primaries: linear light, matrix to sRGB, clipped, sRGB's curve.
P3_ORANGE, ORANGE = (200, 120, 60), (214, 116, 38)


def saved(image: Image.Image, kind: str = "PNG", **more: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def pixels(content: bytes) -> NDArray[np.int64]:
    return np.asarray(open_upright(io.BytesIO(content), "a")).astype(np.int64)


def one(content: bytes) -> list[int]:
    first: list[int] = pixels(content)[0, 0].tolist()
    return first


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", AVIF])
def test_display_p3_of_every_format(kind: str) -> None:
    more = {"WEBP": {"lossless": True}, "PNG": {}, "TIFF": {}}.get(kind, {"quality": 100})
    image = Image.new("RGB", (16, 16), P3_ORANGE)
    found = one(saved(image, kind, icc_profile=P3, **more))
    assert np.abs(np.subtract(found, ORANGE)).max() <= (2 if more.get("quality") else 1)


def test_adobe_rgb() -> None:
    found = one(
        saved(Image.new("RGB", (1, 1), (0, 255, 0)), icc_profile=rgb_profile(ADOBE_RGB, 2.2))
    )
    assert found == [0, 255, 0]  # beyond sRGB
    found = one(
        saved(Image.new("RGB", (1, 1), (150, 100, 100)), icc_profile=rgb_profile(ADOBE_RGB, 2.2))
    )
    assert found[0] > 160  # redder in sRGB's numbers
    assert abs(found[1] - 99) <= 1


def test_a_palette_and_transparency_with_a_profile() -> None:
    palette = Image.new("RGB", (4, 4), P3_ORANGE).quantize(2)
    assert np.abs(np.subtract(one(saved(palette, icc_profile=P3)), ORANGE)).max() <= 1
    mixed = one(saved(Image.new("RGBA", (1, 1), (*P3_ORANGE, 128)), icc_profile=P3))
    expected = [(value * 128 + 255 * 127) / 255 for value in ORANGE]
    assert np.abs(np.subtract(mixed, expected)).max() <= 1


def test_grey_profiles() -> None:
    dark = Image.new("L", (1, 1), 100)
    expected = [round(255 * (1.055 * (100 / 255) ** (1.8 / 2.4) - 0.055))] * 3
    assert np.abs(np.subtract(one(saved(dark, icc_profile=grey_profile(1.8))), expected)).max() <= 1
    alpha = png(np.array([[[100, 255]]]), colour=GREY_ALPHA)
    with Image.open(io.BytesIO(alpha)) as image:
        image.info["icc_profile"] = grey_profile(1.8)
        assert np.abs(np.subtract(to_rgb(image).getpixel((0, 0)), expected)).max() <= 1
    # Grey with a profile of colours: what colours with three equal values are.
    by_colour = one(saved(Image.new("RGB", (1, 1), (100,) * 3), icc_profile=rgb_profile(SRGB, 1.8)))
    assert one(saved(dark, icc_profile=rgb_profile(SRGB, 1.8))) == by_colour
    assert np.abs(np.subtract(by_colour, expected)).max() <= 1


def test_deep_grey_with_a_profile() -> None:
    deep = saved(
        Image.fromarray(np.full((1, 1), 100 * 257, np.uint16)), icc_profile=grey_profile(1.8)
    )
    flat = saved(Image.fromarray(np.full((1, 1), 100, np.uint8)), icc_profile=grey_profile(1.8))
    with Image.open(io.BytesIO(deep)) as image:
        assert image.mode == "I;16"
    bright = np.array([[100 * 257, 65535]], np.uint16)  # so that 16 bits are filled
    assert one(saved(Image.fromarray(bright), icc_profile=grey_profile(1.8))) == one(flat)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str) -> None:
    """A JPEG holds it inverted, as Adobe writes it."""
    more = {"quality": 100} if kind == "JPEG" else {}
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    plain = one(saved(ink, kind, **more))
    assert np.abs(np.subtract(plain, (255, 0, 0))).max() <= 2
    printed = one(saved(ink, kind, icc_profile=cmyk_profile(), **more))
    # Of the paper's light, what both inks let through: 0.95 * 0.8 * 0.95 of red and so on.
    ideal = 255 * np.array([0.95, 0.95, 0.92]) * [0.8 * 0.95, 0.15 * 0.85, 0.45 * 0.1]
    assert np.abs(printed - ideal).max() <= 12  # gamma 2.2 is not quite sRGB's curve
    assert printed != plain


def test_lab() -> None:
    white, grey = ((255, 0, 0), (255, 255, 255)), ((137, 0, 0), (128, 128, 128))
    for values, expected in (white, grey):  # a and b are signed
        content = saved(Image.frombytes("LAB", (1, 1), bytes(values)), "TIFF")
        assert np.abs(np.subtract(one(content), expected)).max() <= 2


@pytest.mark.parametrize(
    "profile",
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        P3[:200],
        b"junk" * 99,
        b"",
        grey_profile(1.8),
        cmyk_profile(),
    ],
    ids=["sRGB", "torn", "junk", "empty", "of grey", "of CMYK"],
)
def test_profiles_that_change_no_pixel(profile: bytes) -> None:
    image = Image.fromarray(NOISE)
    image.info["icc_profile"] = profile
    assert to_rgb(image) is image
    assert np.array_equal(pixels(saved(Image.fromarray(NOISE), icc_profile=profile)), NOISE)


def test_a_profile_of_colours_in_a_cmyk_image_is_ignored() -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert one(saved(ink, "TIFF", icc_profile=P3)) == [255, 0, 0]


def test_a_converted_image_holds_no_profile_and_is_not_converted_twice() -> None:
    content = saved(Image.new("RGB", (1, 1), P3_ORANGE), icc_profile=P3)
    image = open_upright(io.BytesIO(content), "a")
    assert "icc_profile" not in image.info
    assert to_rgb(image) is image


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_images_without_a_profile_are_what_pillow_decodes(kind: str) -> None:
    content = saved(Image.fromarray(NOISE), kind)
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(pixels(content), np.asarray(image))


def gamma(value: int) -> tuple[bytes, bytes]:
    return b"gAMA", value.to_bytes(4, "big")


def test_the_gamma_of_a_png() -> None:
    values = np.array([[[0, 128, 255]]])

    def seen(*chunks: tuple[bytes, bytes]) -> list[int]:
        return one(png(values, colour=RGB, chunks=chunks))

    assert seen(gamma(100_000)) == [0, 188, 255]  # linear light
    assert seen(gamma(55_556)) == [0, 146, 255]  # 1 / 1.8
    assert seen(gamma(45_455)) == [0, 128, 255]  # 1 / 2.2, which programs write for sRGB
    assert seen(gamma(100_000), (b"sRGB", b"\0")) == [0, 128, 255]
    assert seen(gamma(0)) == [0, 128, 255]


def test_threads_share_a_profile() -> None:
    content = saved(
        Image.fromarray(np.tile(NOISE, (20, 20, 1))), icc_profile=rgb_profile(DISPLAY_P3, 1.9)
    )
    alone = pixels(content)
    with ThreadPoolExecutor(8) as pool:
        assert all(np.array_equal(alone, found) for found in pool.map(pixels, [content] * 32))
