from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_files import dng, quarters

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import DecoderPool, open_upright
from edje_qdrant.sources.image_folder import ImageFolder

pytest.importorskip("rawpy")


@pytest.fixture(scope="module")
def decoders() -> Iterator[DecoderPool]:
    with DecoderPool(1) as pool:
        yield pool


def difference(pixels: np.ndarray, expected: Image.Image) -> float:
    assert pixels.shape == (expected.height, expected.width, 3)
    return float(np.abs(pixels.astype(int) - np.asarray(expected)).mean())


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("preview_exif", [None, 1, 6])
def test_the_preview_is_turned_as_the_raw_file_says(
    orientation: int, preview_exif: int | None, decoders: DecoderPool
) -> None:
    content = dng(orientation, preview_exif=preview_exif)
    expected = quarters(120, 160) if orientation in (6, 8) else quarters(160, 120)
    decoded = decoders.decode(content, "a.dng")
    assert decoded.format == "RAW"
    assert difference(decoded.array, expected) < 5
    assert decoded.exif.camera == "Fairphone FP5"
    once = open_upright(io.BytesIO(content), "a.dng")
    assert np.array_equal(np.asarray(once), decoded.array)
    assert np.array_equal(np.asarray(open_upright(once)), decoded.array)


def test_a_preview_that_the_camera_turned_is_not_turned_again(decoders: DecoderPool) -> None:
    decoded = decoders.decode(dng(6, upright_preview=True), "a.dng")
    assert difference(decoded.array, quarters(120, 160)) < 5


def test_a_file_without_a_preview_is_refused(decoders: DecoderPool) -> None:
    with pytest.raises(ImageReadError, match=r"RAW format without a preview"):
        decoders.decode(dng(preview=False), "a.dng")


@pytest.mark.parametrize(
    "content",
    [
        dng()[:-400],
        dng()[:1000] + bytes(3000) + dng()[4000:],
        b"FUJIFILMCCD-RAW 0201" + bytes(500),
        b"\x00\x00\x00\x18ftypcrx " + bytes(500),
        b"II*\x00\x10\x00\x00\x00CR\x02\x00" + bytes(500),
        b"IIU\x00" + bytes(500),
    ],
)
def test_damaged_files_are_refused_or_read(content: bytes, decoders: DecoderPool) -> None:
    with suppress(ImageReadError):
        decoders.decode(content, "a.dng")
    assert decoders.decode(dng(), "a.dng").format == "RAW"


def test_a_tiff_is_no_raw_file(decoders: DecoderPool) -> None:
    buffer = io.BytesIO()
    quarters(32, 24).save(buffer, "TIFF")
    assert decoders.decode(buffer.getvalue(), "a.tif").format == "TIFF"


def test_the_file_is_not_sent_to_browsers(tmp_path: Path, decoders: DecoderPool) -> None:
    (tmp_path / "a.dng").write_bytes(dng(6))
    folder = ImageFolder(tmp_path, decoders)
    assert folder.read({"path": "a.dng"}) is None
    small = folder.thumbnail({"path": "a.dng"}, 64)
    assert small is not None
    assert Image.open(io.BytesIO(small)).size == (48, 64)


def test_without_the_extra_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "rawpy.py").write_text("raise ModuleNotFoundError(name='rawpy')\n")
    (tmp_path / "a.dng").write_bytes(dng())
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from edje_qdrant.errors import ImageReadError\n"
        "from edje_qdrant.images import DecoderPool\n"
        "with DecoderPool(1) as pool:\n"
        "    try:\n"
        f"        pool.decode({str(tmp_path / 'a.dng')!r})\n"
        "    except ImageReadError as error:\n"
        "        print(error.reason)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == (
        "a file in a camera's RAW format, but rawpy is not installed; "
        "run: pip install 'edje-qdrant[raw]'"
    )
