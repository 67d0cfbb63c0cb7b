"""Sources whose library is not installed name the extra that brings it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edje_qdrant.errors import ImageReadError, MissingExtraError
from edje_qdrant.sources import remote
from edje_qdrant.sources.open import open_source
from edje_qdrant.sources.read import read_image


@pytest.mark.parametrize(
    ("module", "source", "extra"),
    [
        ("s3fs", "s3://bucket/photos/", "s3"),
        ("gcsfs", "gs://bucket/photos/", "gcs"),
        ("pyarrow.parquet", "a.parquet", "parquet"),
        ("datasets", "saved", "datasets"),
    ],
)
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, source: str, extra: str
) -> None:
    monkeypatch.setattr(remote, "_stores", {})
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    Path("a.parquet").write_bytes(b"x")
    Path("saved").mkdir()
    Path("saved/state.json").write_text("{}")
    with pytest.raises(MissingExtraError, match=rf"pip install 'edje-qdrant\[{extra}\]'"):
        open_source(source)


def test_so_does_reading_a_row_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "b.parquet").write_bytes(b"x")
    with pytest.raises(ImageReadError, match="edje-qdrant\\[parquet\\]"):
        read_image(f"{tmp_path}/b.parquet#row=0&column=image")
