from __future__ import annotations

import io
import logging
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import ignore_decoder_warnings, open_upright

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encoded(kind: str = "PNG", **more: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **more)
    return buffer.getvalue()


def test_a_path_a_file_and_a_picture_give_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    for file in (str(tmp_path / "a.png"), io.BytesIO(encoded()), Image.fromarray(PIXELS)):
        assert np.array_equal(np.asarray(open_upright(file, "a")), PIXELS)


def test_the_exif_orientation_is_followed() -> None:
    exif = Image.Exif()
    exif[274] = 6
    turned = open_upright(io.BytesIO(encoded(exif=exif)), "a")
    assert np.array_equal(np.asarray(turned), np.rot90(PIXELS, -1))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image"),
        (b"text", "not an image"),
        (encoded()[:60], "."),
    ],
)
def test_what_is_no_picture_is_refused_by_name(content: bytes, reason: str) -> None:
    with pytest.raises(ImageReadError, match=reason) as caught:
        open_upright(io.BytesIO(content), "shard.tar:a.png")
    assert caught.value.path == "shard.tar:a.png"


def test_too_many_pixels_are_refused_before_decoding() -> None:
    assert open_upright(io.BytesIO(encoded()), "a", max_pixels=54).size == (9, 6)
    with pytest.raises(ImageReadError, match="9 x 6 pixels; no more than 53"):
        open_upright(io.BytesIO(encoded()), "a", max_pixels=53)


def test_folders_pipes_and_missing_files_are_refused_at_once(tmp_path: Path) -> None:
    paths = [tmp_path, tmp_path / "missing.png"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        paths.append(tmp_path / "pipe.png")
    for path in paths:
        with pytest.raises(ImageReadError, match=r"not a file|No such file"):
            open_upright(str(path), str(path))


def test_pillows_log_does_not_reach_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    ignore_decoder_warnings()
    log = logging.getLogger("PIL.TiffImagePlugin")
    handlers = logging.root.handlers[:]
    logging.root.handlers[:] = []  # as in a program that sets up no log
    try:
        log.error("More samples per pixel than can be decoded")
    finally:
        logging.root.handlers[:] = handlers
    assert capsys.readouterr().err == ""


def test_only_pillows_warnings_are_hidden() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ignore_decoder_warnings()
        warnings.warn_explicit("odd EXIF", UserWarning, "x.py", 1, module="PIL.Image")
        with pytest.raises(UserWarning, match="elsewhere"):
            warnings.warn_explicit("elsewhere", UserWarning, "x.py", 1, module="numpy")
