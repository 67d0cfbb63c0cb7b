from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edje_qdrant.images import rgb as rgb_module
from edje_qdrant.images import to_rgb

SIZE = (64, 48)


def scene(size: tuple[int, int] = SIZE) -> Image.Image:
    blocks = np.random.default_rng(0).integers(0, 256, (12, 16, 4), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def images(size: tuple[int, int] = SIZE) -> dict[str, tuple[Image.Image, dict[str, Any]]]:
    """Return images and how they are saved, by file name."""
    alpha = scene(size)
    plain, grey = alpha.convert("RGB"), alpha.convert("L")
    deep = np.asarray(grey).astype(np.uint16) * 257
    exif = Image.Exif()
    exif[274] = 6
    return {
        "rgb.png": (plain, {}),
        "rgba.png": (alpha, {}),
        "la.png": (alpha.convert("LA"), {}),
        "grey.png": (grey, {}),
        "key.png": (grey, {"transparency": 7}),
        "palette.png": (plain.convert("P"), {"transparency": bytes(range(256))}),
        "deep.png": (Image.fromarray(deep), {}),
        "floats.tif": (Image.fromarray(deep.astype(np.float32)), {}),
        "integers.tif": (Image.fromarray(deep.astype(np.int32)), {}),
        "a.jpg": (plain, {}),
        "progressive.jpg": (plain, {"progressive": True, "quality": 95, "subsampling": 0}),
        "turned.jpg": (plain, {"exif": exif}),
        "cmyk.jpg": (plain.convert("CMYK"), {}),
        "a.webp": (plain, {}),
        "lossless.webp": (plain, {"lossless": True, "method": 0}),
        "alpha.webp": (alpha, {}),
        "a.jp2": (plain, {}),
        "a.gif": (plain, {}),
        "a.bmp": (plain, {}),
        "a.tif": (plain, {"compression": "tiff_lzw"}),
        "alpha.tif": (alpha, {"compression": "tiff_lzw"}),
        "lab.tif": (plain.convert("LAB"), {}),
    }


@pytest.mark.parametrize("name", [n for n in images() if n != "a.jp2"])
def test_large_images_are_converted_in_bands_to_the_same_pixels(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, options = images()[name]
    image.save(tmp_path / name, **options)
    with Image.open(tmp_path / name) as opened:
        whole = to_rgb(opened)
    monkeypatch.setattr(rgb_module, "_WHOLE", 0)
    monkeypatch.setattr(rgb_module, "_BAND", 5 * SIZE[0] + 1)
    with Image.open(tmp_path / name) as opened:
        np.testing.assert_array_equal(np.asarray(to_rgb(opened)), np.asarray(whole))


_MEASURE = """
import io, sys
from PIL import Image
from edje_qdrant.images.decode_memory import decode_memory
from edje_qdrant.images.formats import open_listed
from edje_qdrant.images.open import open_upright
from edje_qdrant.images.resize import SiglipResize

def kilobytes(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

content = open(sys.argv[1], "rb").read()
open("/proc/self/clear_refs", "w").write("5")
before = kilobytes("VmRSS")
with open_listed(io.BytesIO(content), "a") as image:
    declared = decode_memory(image)
    SiglipResize((224, 224))(open_upright(image))
print(declared, 1024 * (kilobytes("VmHWM") - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize("size", [(3000, 2000), (6000, 4000)])
def test_no_decode_takes_more_memory_than_its_header_says(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    too_much = {}
    for name, (image, options) in images(size).items():
        path = tmp_path / name
        image.save(path, **options)
        command = [sys.executable, "-W", "ignore", "-c", _MEASURE, str(path)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        declared, taken = (int(number) for number in ran.stdout.split())
        if taken > declared:
            too_much[name] = taken / declared
        path.unlink()
    assert too_much == {}
