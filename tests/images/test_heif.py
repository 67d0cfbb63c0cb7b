from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import DecoderPool, open_upright
from edje_qdrant.images.decode_memory import decode_memory
from edje_qdrant.images.formats import open_listed
from edje_qdrant.images.thumbnail import Thumbnail

pytest.importorskip("pi_heif")
# Written by write_files.py in this folder.
FILES = Path(__file__).parent / "heif"
CORNERS = ((255, 0, 0), (0, 160, 0), (0, 0, 255), (255, 255, 255))


def corners(image: Image.Image | NDArray[np.uint8]) -> NDArray[np.int16]:
    """Return the colours of the four quarters of an image, row by row."""
    pixels = np.asarray(image).astype(np.int16)
    height, width, _ = pixels.shape
    rows, columns = (height // 4, 3 * height // 4), (width // 4, 3 * width // 4)
    return np.stack([pixels[row, column] for row in rows for column in columns])


@pytest.fixture(scope="module")
def decoders() -> Iterator[DecoderPool]:
    with DecoderPool(1) as pool:
        yield pool


@pytest.mark.parametrize("number", range(1, 9))
def test_the_files_own_rotation_is_applied_once(number: int, decoders: DecoderPool) -> None:
    path = FILES / f"orientation-{number}.heic"  # EXIF and XMP say the same
    once = open_upright(path)
    assert once.size == (64, 48)
    assert np.abs(corners(once) - CORNERS).max() < 12
    assert np.array_equal(np.asarray(open_upright(once)), np.asarray(once))
    decoded = decoders.decode(str(path))
    assert (decoded.format, decoded.width, decoded.height) == ("HEIF", 64, 48)
    assert np.array_equal(decoded.array, np.asarray(once))


def test_a_profile_is_converted() -> None:
    found = np.asarray(open_upright(FILES / "display-p3.heic"))[32, 32].astype(int)
    assert np.abs(found - (214, 116, 38)).max() <= 3


def test_transparency_shows_white() -> None:
    found = corners(open_upright(FILES / "alpha.heic"))
    assert np.abs(found - (np.array(CORNERS) + 255) / 2).max() < 12


def test_deep_grey_is_scaled_by_its_bits() -> None:
    row = np.asarray(open_upright(FILES / "grey-10-bits.heic"))[32, :, 0].astype(int)
    assert np.abs(row - np.linspace(0, 31.9, 256)).max() < 3


def test_the_primary_image_is_read() -> None:
    image = open_upright(FILES / "second-is-primary.heic")
    assert image.size == (64, 48)
    assert corners(image)[0][2] > 200


def test_a_file_of_several_images_has_thumbnails(decoders: DecoderPool) -> None:
    small = decoders.decode(str(FILES / "second-is-primary.heic"), finish=Thumbnail(32)).data
    with Image.open(io.BytesIO(small)) as image:
        assert image.size == (32, 24)
        assert corners(image.convert("RGB"))[0][2] > 200


def test_pixels_and_memory_are_limited(decoders: DecoderPool) -> None:
    content = (FILES / "6000x4000.heic").read_bytes()
    with (
        DecoderPool(1, max_pixels=10**6) as small,
        pytest.raises(ImageReadError, match="6000 x 4000 pixels; no more than 1000000"),
    ):
        small.decode(content, "a.heic")
    with (
        DecoderPool(1, memory=100 << 20) as small,
        pytest.raises(ImageReadError, match=r"need .* MB to be decoded"),
    ):
        small.decode(content, "a.heic")
    with open_listed(io.BytesIO(content), "a.heic") as image:
        assert decode_memory(image) > 15 * 6000 * 4000  # measured: 9 to 16 bytes a pixel


@pytest.mark.parametrize("length", [16, 40, 300, -40])
def test_a_damaged_file_is_refused(length: int, decoders: DecoderPool) -> None:
    content = (FILES / "photograph.heic").read_bytes()[:length]
    with pytest.raises(ImageReadError):
        decoders.decode(content, "a.heic")
    with pytest.raises(ImageReadError):
        open_upright(io.BytesIO(content), "a.heic")


def test_files_are_told_by_their_brands() -> None:
    content = (FILES / "photograph.heic").read_bytes()
    assert content[8:12] == b"heic"
    generic = content[:8] + b"mif1" + content[12:]
    assert np.abs(corners(open_upright(io.BytesIO(generic), "a")) - CORNERS).max() < 12
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, "AVIF")
    avif = bytearray(buffer.getvalue())
    assert avif[8:12] == b"avif"
    avif[8:12] = b"mif1"  # as some programs write AVIF
    with open_listed(io.BytesIO(bytes(avif)), "a") as image:
        assert image.format == "AVIF"


def test_without_the_extra_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "pi_heif.py").write_text("raise ModuleNotFoundError(name='pi_heif')\n")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from edje_qdrant.errors import ImageReadError\n"
        "from edje_qdrant.images import DecoderPool, open_upright\n"
        f"path = {str(FILES / 'photograph.heic')!r}\n"
        "with DecoderPool(1) as pool:\n"
        "    for read in (open_upright, pool.decode):\n"
        "        try:\n"
        "            read(path)\n"
        "        except ImageReadError as error:\n"
        "            print(error.reason)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == 2 * [
        "a file in the format HEIF, but pi-heif is not installed; "
        "run: pip install 'edje-qdrant[heif]'"
    ]
