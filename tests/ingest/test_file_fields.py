"""What image files know, in the payload, and filters by it on every engine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from index_stand_in import StandIn
from PIL import Image
from qdrant_client import models

from edje_qdrant.collection.collection import ImageCollection, user_payload
from edje_qdrant.errors import ConfigError
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.model import EDJEModel

CHANGED = datetime(2024, 8, 1, 12, 0, 7, tzinfo=timezone.utc)
# Name -> date, offset, latitude, longitude; 23:30 in Lisbon on the 31st is 22:30 in UTC.
PHOTOGRAPHS: dict[str, tuple[str, str | None, float, float]] = {
    "lisbon": ("2024:07:14 18:30:05", "+01:00", 38.71, -9.14),
    "sintra": ("2024:08:31 23:30:00", "+01:00", 38.8, -9.39),
    "tokyo": ("2024:09:01 06:00:00", "+09:00", 35.68, 139.76),
    "old": ("2003:12:14 12:01:44", None, 38.72, -9.15),
}
FIXED = {"path", "width", "height"}


def write_photographs(folder: Path) -> None:
    folder.mkdir()
    for number, (name, (taken, offset, lat, lon)) in enumerate(PHOTOGRAPHS.items()):
        exif = Image.Exif()
        exif[271], exif[272], exif[274] = "Fairphone", "FP5", 6
        own = exif.get_ifd(34665)
        own[36867], own[42036] = taken, "5.6 mm"
        if offset is not None:
            own[36881] = offset
        gps = exif.get_ifd(34853)
        gps[1], gps[2] = "N", (abs(lat), 0.0, 0.0)
        gps[3], gps[4] = "W" if lon < 0 else "E", (abs(lon), 0.0, 0.0)
        path = folder / f"{name}.jpg"
        Image.new("RGB", (40, 30), (60 * number, 90, 30)).save(path, exif=exif)
        os.utime(path, (CHANGED.timestamp(),) * 2)
    Image.new("RGB", (40, 30), "white").save(folder / "drawing.png")


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


@pytest.fixture
def edge(tmp_path: Path, tiny_model: EDJEModel) -> Iterator[ImageCollection]:
    with ImageCollection.create(tmp_path / "edge", "images", tiny_model.contract()) as made:
        yield made


def ingest(source: Path, collection: ImageCollection, model: EDJEModel, **options: Any) -> Any:
    return ingest_images(source, collection, model, workers=1, progress=False, **options)


def stored(collection: ImageCollection, filter: Any = None) -> dict[str, dict[str, Any]]:
    """Return the payloads by the stem of the file's name."""
    pages = collection.index.scroll(filter=filter, payload=True)
    payloads = [user_payload(point.payload) for page in pages for point in page]
    return {Path(payload["path"]).stem: payload for payload in payloads}


def field(key: str, **condition: Any) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key=key, **condition)])


@pytest.mark.parametrize("indexed", [False, True])
def test_dates_and_places_are_found(
    tmp_path: Path, collection: ImageCollection, tiny_model: EDJEModel, indexed: bool
) -> None:
    write_photographs(tmp_path / "photos")
    if indexed:
        kinds: dict[str, Any] = {"taken_at": "datetime", "place": "geo", "camera": "keyword"}
        for name, kind in kinds.items():
            collection.index.create_payload_index(name, kind)
    report = ingest(tmp_path / "photos", collection, tiny_model, gps=True)
    assert (report.added, report.failed) == (5, ())
    payload = stored(collection)["lisbon"]
    assert payload == {
        "path": str(tmp_path / "photos" / "lisbon.jpg"),
        "width": 30,
        "height": 40,
        "taken_at": "2024-07-14T18:30:05+01:00",
        "place": {"lon": -9.14, "lat": 38.71},
        "camera": "Fairphone FP5",
        "lens": "5.6 mm",
        "file_size": (tmp_path / "photos" / "lisbon.jpg").stat().st_size,
        "modified_at": "2024-08-01T12:00:07Z",
    }
    assert set(stored(collection)["drawing"]) == {*FIXED, "file_size", "modified_at"}
    summer = models.DatetimeRange(gte=date(2024, 6, 1), lt=date(2024, 9, 1))
    # In Tokyo it was September already, in UTC it was not.
    assert set(stored(collection, field("taken_at", range=summer))) == {"lisbon", "sintra", "tokyo"}
    near = models.GeoRadius(center=models.GeoPoint(lat=38.72, lon=-9.14), radius=10_000)
    assert set(stored(collection, field("place", geo_radius=near))) == {"lisbon", "old"}
    box = models.GeoBoundingBox(
        top_left=models.GeoPoint(lat=42.2, lon=-9.6), bottom_right=models.GeoPoint(lat=36.9, lon=-6)
    )
    assert set(stored(collection, field("place", geo_bounding_box=box))) == {
        "lisbon", "sintra", "old",
    }  # fmt: skip
    assert len(stored(collection, {"camera": "Fairphone FP5"})) == 4
    changed = models.DatetimeRange(gte=CHANGED, lte=CHANGED)
    assert len(stored(collection, field("modified_at", range=changed))) == 4


def test_places_are_stored_only_if_asked_for(
    tmp_path: Path, edge: ImageCollection, tiny_model: EDJEModel
) -> None:
    write_photographs(tmp_path / "photos")
    ingest(tmp_path / "photos", edge, tiny_model)
    for payload in stored(edge).values():
        assert "place" not in payload
        assert "38.7" not in json.dumps(payload)


def test_nothing_is_stored_without_exif(
    tmp_path: Path, edge: ImageCollection, tiny_model: EDJEModel
) -> None:
    write_photographs(tmp_path / "photos")
    ingest(tmp_path / "photos", edge, tiny_model, exif=False)
    assert {frozenset(payload) for payload in stored(edge).values()} == {frozenset(FIXED)}
    with pytest.raises(ConfigError, match="leave exif on"):
        ingest(tmp_path / "photos", edge, tiny_model, exif=False, gps=True)


def test_fields_of_a_manifest_win(
    tmp_path: Path, edge: ImageCollection, tiny_model: EDJEModel
) -> None:
    write_photographs(tmp_path / "photos")
    line = {"path": "lisbon.jpg", "camera": "a box", "taken_at": "2001-01-01", "lens": None}
    manifest = tmp_path / "photos" / "list.jsonl"
    manifest.write_text(json.dumps(line))
    ingest(manifest, edge, tiny_model)
    payload = stored(edge)["lisbon"]
    assert (payload["camera"], payload["taken_at"]) == ("a box", "2001-01-01")
    assert payload.get("lens") is None
    manifest.write_text(json.dumps({"path": "lisbon.jpg", "camera": "another"}))
    assert ingest(manifest, edge, tiny_model).updated == 1
    assert stored(edge)["lisbon"]["camera"] == "another"


@pytest.mark.slow
def test_worker_processes_store_the_same(
    tmp_path: Path, edge: ImageCollection, tiny_model: EDJEModel
) -> None:
    write_photographs(tmp_path / "photos")
    ingest(tmp_path / "photos", edge, tiny_model, gps=True)
    with ImageCollection.create(tmp_path / "second", "images", tiny_model.contract()) as second:
        ingest(tmp_path / "photos", second, tiny_model, gps=True, processes=1)
        assert stored(second) == stored(edge)
