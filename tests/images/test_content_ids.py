from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import image_file_id


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
    monkeypatch.setattr("edje_qdrant.images.content_ids._READ_BYTES", 999)
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
