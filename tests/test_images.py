from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import ignore_decoder_warnings, image_file_id, open_upright

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


def test_only_pillows_warnings_are_hidden() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ignore_decoder_warnings()
        warnings.warn_explicit("odd EXIF", UserWarning, "x.py", 1, module="PIL.Image")
        with pytest.raises(UserWarning, match="elsewhere"):
            warnings.warn_explicit("elsewhere", UserWarning, "x.py", 1, module="numpy")


def test_a_picture_is_named_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "black.ppm"
    path.write_bytes(b"P6 2 2 255\n" + bytes(12))
    known = "9bc2c897-6ff4-5c1f-bd27-f8b785727c85"  # for ever: collections hold it
    assert image_file_id(str(path)) == known
    path.rename(tmp_path / "moved")
    assert image_file_id(str(tmp_path / "moved")) == known
    (tmp_path / "moved").write_bytes(b"P6 2 2 255\n" + bytes(11) + b"\1")
    assert image_file_id(str(tmp_path / "moved")) != known


def test_a_name_does_not_need_the_whole_file_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = np.random.default_rng(0).bytes(10_000)
    (tmp_path / "a").write_bytes(content)
    whole = image_file_id(str(tmp_path / "a"))
    monkeypatch.setattr("edje_qdrant.images._READ_BYTES", 999)
    assert image_file_id(str(tmp_path / "a")) == whole


def test_what_has_no_name(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    reasons = {
        "empty.png": "the file is empty",
        "nowhere.png": "No such file",
        ".": "not a file",
        "loop.png": "symbolic links",
        "nul\0.png": "null byte",
    }
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        reasons["pipe.png"] = "not a file"
    for name, reason in reasons.items():
        path = f"{tmp_path}/{name}"
        with pytest.raises(ImageReadError, match=reason) as caught:
            image_file_id(path)
        assert caught.value.path == path
