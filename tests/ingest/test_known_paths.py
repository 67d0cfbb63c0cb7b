"""A second ingest of unchanged files, which reads none of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from index_stand_in import StandIn

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import StoreError
from edje_qdrant.ingest import decode
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.model import EDJEModel
from edje_qdrant.types import IngestReport

WriteImages = Callable[..., list[Path]]


@pytest.fixture(params=["edge", "faiss", "server"])
def collection(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_model: EDJEModel
) -> Iterator[ImageCollection]:
    contract = tiny_model.contract()
    if request.param == "server":
        with StandIn() as server, ImageCollection.create(server.url, "images", contract) as made:
            yield made
        return
    if request.param == "faiss":
        pytest.importorskip("faiss", reason="needs the extra faiss")
    place = tmp_path / "index"
    with ImageCollection.create(place, "images", contract, engine=request.param) as made:
        yield made


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that an ingest has read to name them."""
    names: list[str] = []
    real = decode.image_file_id

    def named(path: str) -> str:
        names.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(decode, "image_file_id", named)
    return names


@pytest.fixture
def ingest(collection: ImageCollection, tiny_model: EDJEModel) -> Callable[..., IngestReport]:
    def run(source: Any, **options: Any) -> IngestReport:
        return ingest_images(source, collection, tiny_model, progress=False, workers=1, **options)

    return run


def test_unchanged_files_are_not_read_again(
    tmp_path: Path, write_images: WriteImages, ingest: Callable[..., IngestReport], read: list[str]
) -> None:
    first, second, third = write_images(tmp_path / "images", 3)
    assert ingest(tmp_path / "images").added == 3
    assert len(read) == 3
    read.clear()
    report = ingest(tmp_path / "images")
    assert (report.added, report.known) == (0, 3)
    assert read == []

    # The same size and second, but not the same microsecond.
    os.utime(first, ns=(0, first.stat().st_mtime_ns + 1000))
    second.write_bytes(third.read_bytes())
    report = ingest(tmp_path / "images")
    assert (report.added, report.known, report.twice) == (0, 2, 1)
    assert sorted(read) == sorted([first.name, second.name])

    report = ingest([(third, {"album": "2024"})])
    assert (report.updated, report.known) == (1, 0)
    assert sorted(read) == sorted([first.name, second.name])


def test_files_whose_stamps_are_not_stored_are_read(
    tmp_path: Path, write_images: WriteImages, ingest: Callable[..., IngestReport], read: list[str]
) -> None:
    path, other = write_images(tmp_path / "images", 2)
    assert ingest([path], exif=False).added == 1
    assert ingest([(other, {"modified_at": "2001-01-01T00:00:00Z"})]).added == 1
    read.clear()
    assert ingest([path, other]).known == 2
    assert read == [path.name, other.name]


def test_pruning_keeps_what_is_not_read(
    tmp_path: Path, write_images: WriteImages, ingest: Callable[..., IngestReport], read: list[str]
) -> None:
    first, _ = write_images(tmp_path / "images", 2)
    ingest(tmp_path / "images")
    first.unlink()
    read.clear()
    report = ingest(tmp_path / "images", prune=True)
    assert (report.known, report.pruned, read) == (1, 1, [])


@pytest.mark.parametrize("collection", ["edge"], indirect=True)
def test_without_an_index_all_files_are_read(
    tmp_path: Path,
    write_images: WriteImages,
    collection: ImageCollection,
    ingest: Callable[..., IngestReport],
    read: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_images(tmp_path / "images", 2)
    ingest(tmp_path / "images")
    read.clear()

    def refuse(indexes: Any) -> None:
        raise StoreError("no more than 0 payload indexes are allowed")

    monkeypatch.setattr(collection, "create_payload_indexes", refuse)
    assert ingest(tmp_path / "images").known == 2
    assert len(read) == 2
    assert "no more than 0 payload indexes" in caplog.text
