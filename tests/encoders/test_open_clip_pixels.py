from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from edje_qdrant.encoders.open_clip_pixels import PixelSettings
from edje_qdrant.errors import ConfigError, ImageReadError

PLAIN = PixelSettings(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def left_white(width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height), "black")
    image.paste("white", (0, 0, width // 2, height))
    return image


def test_shortest_keeps_the_middle() -> None:
    pixels = PLAIN.pixels([left_white(160, 40)])
    assert pixels.shape == (1, 3, 8, 8)
    assert pixels.dtype == torch.float32
    # The middle quarter is white on its left half; the resizing filter blurs the border.
    torch.testing.assert_close(pixels[0, :, :, :2], torch.ones(3, 8, 2))
    torch.testing.assert_close(pixels[0, :, :, -2:], -torch.ones(3, 8, 2))


def test_squash_keeps_everything() -> None:
    image = Image.new("RGB", (160, 40), "black")
    image.paste("white", (0, 0, 20, 40))  # an eighth, all of it outside the middle
    squashed = dataclasses.replace(PLAIN, resize_mode="squash").pixels([image])
    assert squashed[0, 0, :, 0].min() > 0.8
    assert PLAIN.pixels([image]).max() == -1


def test_longest_fills_up() -> None:
    settings = dataclasses.replace(PLAIN, resize_mode="longest", fill_color=255)
    pixels = settings.pixels([Image.new("RGB", (160, 40), "black")])
    rows = pixels[0, 0, :, 0]
    assert rows.tolist() == [1, 1, 1, -1, -1, 1, 1, 1]


def test_a_size_may_have_two_sides() -> None:
    settings = dataclasses.replace(PLAIN, size=(8, 16))
    assert settings.pixels([left_white(31, 30), left_white(99, 10)]).shape == (2, 3, 8, 16)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16", "1"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    pixels = PLAIN.pixels([Image.new("RGB", (9, 9)).convert("L").convert(mode)])
    assert pixels.shape == (1, 3, 8, 8)


def test_mean_and_std_are_by_channel() -> None:
    settings = dataclasses.replace(PLAIN, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    pixels = settings.pixels([Image.new("RGB", (8, 8), (255, 0, 51))])
    assert pixels[0, :, 3, 3].tolist() == pytest.approx([1.0, -1.0, (0.2 - 1) / 0.25])


def test_no_pictures_are_no_pixels() -> None:
    assert PLAIN.pixels([]).shape == (0, 3, 8, 8)


def test_long_and_thin_is_refused_before_it_fills_the_memory() -> None:
    image = Image.new("RGB", (3, 50000))
    with pytest.raises(ImageReadError, match="3 x 50000"):
        PLAIN.pixels([image])
    assert dataclasses.replace(PLAIN, resize_mode="squash").pixels([image]).shape == (1, 3, 8, 8)


def test_broken_data_is_refused() -> None:
    image = Image.frombytes("RGB", (4, 4), bytes(48))
    image.load = lambda: (_ for _ in ()).throw(OSError("truncated"))  # type: ignore[assignment]
    with pytest.raises(ImageReadError, match="truncated"):
        PLAIN.pixels([image])


def test_settings_go_to_json_and_back() -> None:
    settings = PixelSettings.from_dict(
        {"size": 224, "mean": 0.5, "std": [0.1, 0.2, 0.3], "interpolation": "bilinear", "url": ""}
    )
    assert settings.size == (224, 224)
    assert settings.mean == (0.5, 0.5, 0.5)
    assert PixelSettings.from_dict(settings.as_dict()) == settings
    assert PixelSettings.from_dict({**settings.as_dict(), "interpolation": "random"}) != settings


@pytest.mark.parametrize(
    "change",
    [
        {"size": (8, 9)},
        {"mean": (0.5, 0.5, 0.4)},
        {"std": (0.5, 0.5, 0.4)},
        {"interpolation": "bilinear"},
        {"resize_mode": "squash"},
        {"fill_color": 1},
    ],
)
def test_the_hash_follows_every_setting(change: dict[str, object]) -> None:
    assert dataclasses.replace(PLAIN, **change).hash() != PLAIN.hash()  # type: ignore[arg-type]
    assert dataclasses.replace(PLAIN).hash() == PLAIN.hash()


@pytest.mark.parametrize(
    "broken",
    [
        {"size": (1, 2, 3)},
        {"size": None},
        {"mean": [0.5]},
        {"std": "x"},
        {"resize_mode": "stretch"},
        {"fill_color": "red"},
    ],
)
def test_settings_that_make_no_sense_are_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        PixelSettings.from_dict({**PLAIN.as_dict(), **broken})


def test_numbers_of_a_picture_are_its_own() -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (20, 9 + i, 3), dtype=np.uint8)) for i in (0, 5)]
    together = PLAIN.pixels(images)
    for row, image in zip(together, images, strict=True):
        assert torch.equal(PLAIN.pixels([image])[0], row)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(24, 24), (24, 40)])
@pytest.mark.parametrize(("width", "height"), [(160, 40), (40, 160), (33, 31), (7, 5), (640, 481)])
def test_the_seen_area_is_where_the_pixels_come_from(
    mode: str, size: tuple[int, int], width: int, height: int
) -> None:
    settings = dataclasses.replace(PLAIN, size=size, resize_mode=mode, interpolation="bilinear")
    across = np.tile(np.linspace(0, 255, width), (height, 1))
    down = np.tile(np.linspace(0, 255, height)[:, None], (1, width))
    picture = np.stack([across, down, 255 + 0 * across], axis=-1).astype(np.uint8)
    pixels = (settings.pixels([Image.fromarray(picture)])[0].numpy() + 1) / 2
    left, top, right, bottom = settings.seen_area(width, height)
    filled = pixels[2] < 0.5  # the third channel is white wherever there is image
    x = left + (right - left) * (np.arange(size[1]) + 0.5) / size[1]
    y = top + (bottom - top) * (np.arange(size[0]) + 0.5) / size[0]
    outside = (x < 0) | (x > 1) | ((y < 0) | (y > 1))[:, None]
    np.testing.assert_array_equal(filled, outside)
    # A pixel says where in the image it lies, to a pixel of the smaller of the two.
    wanted_x, wanted_y = np.broadcast_arrays(x, y[:, None])
    close = 1 / min(width, size[1]) + 1 / 255, 1 / min(height, size[0]) + 1 / 255
    np.testing.assert_allclose(pixels[0][~filled], wanted_x[~filled], rtol=0, atol=close[0])
    np.testing.assert_allclose(pixels[1][~filled], wanted_y[~filled], rtol=0, atol=close[1])
