from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import to_rgb


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV",
             "I", "F", "I;16", "I;16B", "RGBX"],
)  # fmt: skip
def test_every_mode_becomes_rgb(mode: str) -> None:
    rgb = to_rgb(Image.new(mode, (5, 3)))
    assert rgb.mode == "RGB"
    assert rgb.size == (5, 3)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = Image.fromarray(np.array([[0, 257 * 10, 257 * 200, 65535]], dtype=np.uint16))
    assert np.asarray(to_rgb(deep))[0, :, 0].tolist() == [0, 10, 200, 255]
    shallow = Image.fromarray(np.array([[0, 10, 200, 255]], dtype=np.int32))
    assert np.asarray(to_rgb(shallow))[0, :, 0].tolist() == [0, 10, 200, 255]


def test_palette_with_transparency_gives_no_warning() -> None:
    buffer = BytesIO()
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.save(buffer, "PNG", transparency=bytes([0, 128]))
    assert to_rgb(Image.open(buffer)).getpixel((0, 0)) == (10, 20, 30)


def test_torn_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "torn.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as image, pytest.raises(ImageReadError) as caught:
        to_rgb(image)
    assert caught.value.path == str(path)
