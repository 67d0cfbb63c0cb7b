"""--where with bounds and places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError
from edje_qdrant.index.where import filter_of
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.model import EDJEModel

PHOTOGRAPHS: dict[str, dict[str, Any]] = {
    "lisbon": {"taken_at": "2024-07-14T18:30:05+01:00", "place": {"lat": 38.71, "lon": -9.14},
               "iso": 100, "camera": "FP5"},
    "tokyo": {"taken_at": "2024-09-01T06:00:00+09:00", "place": {"lat": 35.68, "lon": 139.76},
              "iso": 800, "camera": "FP5"},
    "old": {"taken_at": "2003-12-14T12:01:44Z", "place": {"lat": 38.72, "lon": -9.15},
            "iso": 400, "camera": "S40"},
}  # fmt: skip


@pytest.fixture(params=["edge", "faiss"])
def collection(request: pytest.FixtureRequest, tmp_path: Path, tiny_model: EDJEModel) -> Any:
    if request.param == "faiss":
        pytest.importorskip("faiss", reason="needs the extra faiss")
    contract = tiny_model.contract()
    items = []
    for number, (name, fields) in enumerate(PHOTOGRAPHS.items()):
        pixels = np.full((30, 40, 3), 60 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        items.append((tmp_path / f"{name}.png", fields))
    with ImageCollection.create(
        tmp_path / "index", "images", contract, engine=request.param
    ) as made:
        ingest_images(items, made, tiny_model, workers=1, progress=False)
        yield made


@pytest.mark.parametrize(
    ("where", "found"),
    [
        (["taken_at>=2024-06-01", "taken_at<2024-09-01"], {"lisbon", "tokyo"}),
        (["taken_at>2024-08-31T21:00:00Z"], set()),
        (["taken_at>=2024-08-31T21:00:00Z"], {"tokyo"}),
        (["taken_at<=2004-01-01"], {"old"}),
        (["place~38.72,-9.14,10000"], {"lisbon", "old"}),
        (["place~38.72, -9.14, 1e4", "camera=FP5"], {"lisbon"}),
        (["iso>100", "iso<=800"], {"tokyo", "old"}),
        (["iso>=400.5"], {"tokyo"}),
        (["camera=FP5", "camera=S40", "iso<500"], {"lisbon", "old"}),
        (["camera=S40"], {"old"}),
    ],
)
def test_bounds_and_places(collection: ImageCollection, where: list[str], found: set[str]) -> None:
    pages = collection.index.scroll(filter=filter_of(where), payload=True)
    assert {Path(point.payload["path"]).stem for page in pages for point in page} == found


def test_signs_in_a_value_are_part_of_it() -> None:
    assert filter_of(["title=a>=b", "note=x~y"]) == {"title": ["a>=b"], "note": ["x~y"]}


def test_spaces_around_a_field_and_a_value_do_not_count() -> None:
    assert filter_of(["album = the sea ", 'title=" a"']) == {"album": ["the sea"], "title": [" a"]}
    assert filter_of(["iso >= 400"]) == filter_of(["iso>=400"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("taken_at>=soon", "give a number, or a date"),
        ("taken_at>=2024-13-01", "give a number, or a date"),
        ("taken_at>=", "give a number, or a date"),
        ("iso>1e999", "give a number, or a date"),
        ("place~Lisbon", "LAT,LON,METRES"),
        ("place~1,2", "LAT,LON,METRES"),
        ("place~91,2,3", "names no place"),
        ("place~1,2,0", "names no place"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        filter_of([text])
