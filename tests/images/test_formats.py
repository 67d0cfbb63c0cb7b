from __future__ import annotations

import base64
import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import FORMATS, open_upright

SCENE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
ENDLESS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n"


def saved(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(SCENE).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a `gs` first on the path; the file that is returned exists once it has run."""
    from PIL import EpsImagePlugin

    marker, programs = tmp_path / "gs-has-run", tmp_path / "programs"
    programs.mkdir()
    script = programs / "gs"
    script.write_text(f"#!/bin/sh\ntouch '{marker}'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # look for it again
    return marker


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_the_trap_catches_pillow_itself(tmp_path: Path, ghostscript: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(ENDLESS)
    with Image.open(tmp_path / "a.jpg") as image, suppress(OSError):
        image.load()
    assert ghostscript.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".eps", ".tiff"])
def test_a_program_with_an_images_suffix_is_not_run(
    tmp_path: Path, ghostscript: Path, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(ENDLESS)
    for file in (path, str(path), io.BytesIO(ENDLESS)):
        with pytest.raises(ImageReadError, match="format EPS, which is not read"):
            open_upright(file, "a")
    assert not ghostscript.exists()


@pytest.mark.parametrize(
    "kind",
    ["JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF"],
)
def test_the_listed_formats_are_read(kind: str) -> None:
    if kind not in (*FORMATS, "MPO"):
        pytest.skip(f"Pillow without {kind}")
    options = {"ICO": {"sizes": [(24, 16)]}, "MPO": {"save_all": True}}.get(kind, {})
    image = open_upright(io.BytesIO(saved(kind, **options)), "a")
    assert image.size == (24, 16)
    assert kind in (*FORMATS, "MPO")  # which Pillow opens as a JPEG


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (ENDLESS, "EPS"),
        (b"\xc5\xd0\xd3\xc6" + bytes(28), "EPS"),
        (b"DanM" + bytes(40), "MSP"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512), "FPX"),
        (b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(40), "WMF"),
        (b"\x01\x00\x00\x00" + bytes(36) + b" EMF" + bytes(40), "WMF"),
        (b"8BPS\x00\x01" + bytes(40), "PSD"),
        (b"DDS " + bytes(124), "DDS"),
        (b"qoif" + bytes(20), "QOI"),
        (b"#define im_width 8\n", "XBM"),
        (b"/* XPM */\n" + bytes(20), "XPM|XBM"),
        (b"%PDF-1.7\n", "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"PK\x03\x04" + bytes(30), "ZIP"),
    ],
)
def test_other_formats_are_refused_by_name(content: bytes, name: str) -> None:
    with pytest.raises(ImageReadError, match=f"format ({name})") as caught:
        open_upright(io.BytesIO(content), "upload")
    assert "JPEG" in caught.value.reason  # says what is read


def test_the_formats_that_pillow_writes_and_the_list_leaves_out_are_refused() -> None:
    Image.init()
    refused = set()
    for kind in sorted({*Image.SAVE, *Image.OPEN} - {*FORMATS, "MPO", "DIB", "APNG"}):
        try:
            content = saved(kind)
        except Exception:  # not every format can be written, or holds such an image
            continue
        with pytest.raises(ImageReadError):
            open_upright(io.BytesIO(content), kind)
        refused.add(kind)
    assert {"EPS", "SGI", "DDS", "PCX", "TGA", "PDF"} <= refused


def test_a_document_of_rerankers_is_opened_by_the_same_rules(ghostscript: Path) -> None:
    pytest.importorskip("rerankers")
    from rerankers.documents import Document

    from edje_qdrant.integrations.rerankers import _image_of

    document = Document(
        document_type="image", base64=base64.b64encode(ENDLESS).decode(), doc_id="d"
    )
    with pytest.raises(ImageReadError, match="format EPS"):
        _image_of(document)
    assert not ghostscript.exists()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [2, 6, 7])
def test_an_image_that_is_upright_already_is_not_turned_again(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    once = open_upright(io.BytesIO(saved(kind, exif=exif)), "a")
    assert np.array_equal(np.asarray(open_upright(once)), np.asarray(once))
