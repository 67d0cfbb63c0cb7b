"""The same images again, with other fields in the manifest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from index_stand_in import StandIn
from PIL import Image

from edje_qdrant.collection.collection import ImageCollection, user_payload
from edje_qdrant.images import image_file_id
from edje_qdrant.ingest.decode import KnownImage, identify_image
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.ingest.update_fields import update_fields
from edje_qdrant.model import EDJEModel
from edje_qdrant.sources.protocol import ListedImage
from edje_qdrant.types import IngestReport

WriteImages = Callable[..., list[Path]]

FIELDS: dict[str, Any] = {
    "album": "winter", "year": 2023, "ratio": 1.0, "done": True, "tags": ["a", {"b": [1, 2.5]}],
    "nothing": None, "camera": {"maker": "x", "lens": None},
}  # fmt: skip


@pytest.fixture(params=["edge", "faiss", "memory", "server"])
def collection(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_model: EDJEModel
) -> Iterator[ImageCollection]:
    options: dict[str, Any] = {"engine": "faiss"} if request.param == "faiss" else {}
    if options:
        pytest.importorskip("faiss", reason="needs the extra faiss")
    with ExitStack() as stack:
        place: Any = tmp_path / "index"
        if request.param == "memory":
            place = ":memory:"
        elif request.param == "server":
            place = stack.enter_context(StandIn()).url
        contract = tiny_model.contract()
        yield stack.enter_context(ImageCollection.create(place, "images", contract, **options))


class Manifest:
    """A manifest that is rewritten and ingested several times; nothing is encoded twice."""

    def __init__(self, folder: Path, collection: ImageCollection, model: EDJEModel) -> None:
        self.path, self.collection, self.model = folder / "list.jsonl", collection, model

    def ingest(self, lines: list[dict[str, Any]], **options: Any) -> IngestReport:
        self.path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
        return ingest_images(
            self.path, self.collection, self.model, workers=1, progress=False, **options
        )

    def stored(self, path: Path) -> dict[str, Any]:
        image_id = image_file_id(str(path))
        found = self.collection.index.retrieve([image_id], tokens=False)[image_id]
        return {k: v for k, v in user_payload(found).items() if k not in ("width", "height")}


def outcome(report: IngestReport) -> tuple[int, int, int]:
    return report.added, report.updated, report.skipped


def test_other_fields_are_updated_and_nothing_is_encoded_again(
    tmp_path: Path,
    write_images: WriteImages,
    collection: ImageCollection,
    tiny_model: EDJEModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = write_images(tmp_path / "pictures", 3)
    manifest = Manifest(tmp_path, collection, tiny_model)
    lines = [{"path": str(path), **FIELDS, "page": n} for n, path in enumerate(paths)]
    assert outcome(manifest.ingest(lines)) == (3, 0, 0)
    before = collection.encodings([image_file_id(str(paths[0]))])
    monkeypatch.setattr(type(tiny_model), "start_encoding", None)

    assert outcome(manifest.ingest(lines)) == (0, 0, 3)  # the same: nothing is written
    lines[0] |= {"album": "summer", "tags": ["a", {"b": [1, 3]}], "done": 1, "width": 7}
    lines[1] = {"path": str(paths[1]), "camera": {"maker": "y"}}
    assert outcome(manifest.ingest(lines)) == (0, 2, 1)
    first, second = manifest.stored(paths[0]), manifest.stored(paths[1])
    assert (first["album"], first["tags"][1], first["done"]) == ("summer", {"b": [1, 3]}, 1)
    assert first["done"] is not True
    assert (first["year"], first["page"], first["path"]) == (2023, 0, str(paths[0]))
    assert (second["camera"], second["album"]) == ({"maker": "y"}, "winter")
    assert outcome(manifest.ingest(lines)) == (0, 0, 3)

    lines[0] |= {"album": None, "year": 2024}
    assert outcome(manifest.ingest(lines)) == (0, 1, 2)
    first = manifest.stored(paths[0])
    assert first.get("album") is None
    assert first["year"] == 2024
    assert outcome(manifest.ingest(lines)) == (0, 0, 3)
    after = collection.encodings([image_file_id(str(paths[0]))])
    assert (after.tokens == before.tokens).all()
    assert collection.count({"year": 2024}) == 1


def test_an_image_twice_in_the_manifest_keeps_its_first_fields(
    tmp_path: Path, write_images: WriteImages, collection: ImageCollection, tiny_model: EDJEModel
) -> None:
    (path,) = write_images(tmp_path / "pictures", 1)
    copy = path.with_name("copy.png")
    copy.write_bytes(path.read_bytes())
    lines = [{"path": str(path), "page": 1}, {"path": str(copy), "page": 2}]
    manifest = Manifest(tmp_path, collection, tiny_model)
    assert outcome(manifest.ingest(lines)) == (1, 0, 1)
    for _ in range(2):
        assert outcome(manifest.ingest(lines)) == (0, 0, 2)
        assert manifest.stored(path)["page"] == 1
    assert outcome(manifest.ingest([lines[1], lines[0]])) == (0, 1, 1)
    assert manifest.stored(path)["page"] == 2


def test_a_folder_names_no_fields_and_changes_none(
    tmp_path: Path, write_images: WriteImages, collection: ImageCollection, tiny_model: EDJEModel
) -> None:
    (path,) = write_images(tmp_path / "pictures", 1)
    manifest = Manifest(tmp_path, collection, tiny_model)
    manifest.ingest([{"path": str(path), "album": "a"}])
    report = ingest_images(path.parent, collection, tiny_model, workers=1, progress=False)
    assert outcome(report) == (0, 0, 1)
    assert manifest.stored(path)["album"] == "a"


def test_pruning_updates_too(
    tmp_path: Path, write_images: WriteImages, collection: ImageCollection, tiny_model: EDJEModel
) -> None:
    paths = write_images(tmp_path / "pictures", 2)
    manifest = Manifest(tmp_path, collection, tiny_model)
    manifest.ingest([{"path": str(path), "album": "a"} for path in paths])
    report = manifest.ingest([{"path": str(paths[0]), "album": "b"}], prune=True)
    assert (*outcome(report), report.pruned) == (0, 1, 0, 1)
    assert manifest.stored(paths[0])["album"] == "b"


def test_dates_of_a_source_are_compared_as_they_are_stored(
    collection: ImageCollection, tiny_model: EDJEModel, tmp_path: Path, write_images: WriteImages
) -> None:
    (path,) = write_images(tmp_path / "images", 1)
    taken = datetime(2024, 5, 17, 12)
    listed = ListedImage(str(path), {"taken": taken, "days": [taken.date()]})
    known = identify_image(listed)
    assert isinstance(known, KnownImage)
    assert known.listed.fields == {"taken": "2024-05-17T12:00:00Z", "days": ["2024-05-17"]}
    encoding = tiny_model.encode_images([Image.open(path)])
    collection.add([known.image_id], encoding, [{"path": str(path), "taken": taken}])
    assert update_fields(collection, {known.image_id: known.listed.fields}) == {known.image_id}
    assert update_fields(collection, {known.image_id: known.listed.fields}) == set()
