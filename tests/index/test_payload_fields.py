"""Payload fields from a sample, the most frequent values, and mistakes in filters."""

from __future__ import annotations

from typing import Any

import pytest
from index_engines import Engine, image_id, unit_vectors
from index_stand_in import StandIn
from qdrant_client import models

from edje_qdrant.errors import ConfigError
from edje_qdrant.index import VectorIndex, payload_fields
from edje_qdrant.index.payload_fields import filter_problems, nearest_name, sample_fields
from edje_qdrant.index.where import filter_of
from edje_qdrant.types import Point

COUNT = 12


def filled(engine: Engine) -> VectorIndex:
    index = engine.create()
    vectors = unit_vectors(COUNT)
    payloads: list[dict[str, Any]] = [
        {
            "album": ["sea", "hills", "sea"][n % 3],
            "year": 2020 + n % 4,
            "good": n % 2 == 0,
            "day": f"2024-06-{n + 1:02}",
            "taken_at": f"2024-06-{n + 1:02}T10:00:00+02:00",
            "place": {"lat": 38.7, "lon": -9.1},
            "camera": {"maker": "Zed", "iso": 100.5},
            "tags": ["a", "b"],
            "odd name": "x",
            "boxes": [{"w": 1}],
            "nothing": None,
            "_edje": {"record": n, "tokens": "QUJD"},
        }
        for n in range(COUNT)
    ]
    index.upsert([Point(image_id(n), vectors[n], payloads[n]) for n in range(COUNT)])
    return index


def test_fields_kinds_and_values(engine: Engine) -> None:
    index = filled(engine)
    sample = sample_fields(index)
    assert (sample.points, sample.complete) == (COUNT, True)
    kinds = {name: sorted(each.kinds) for name, each in sample.fields.items()}
    assert kinds == {
        "album": ["keyword"],
        "year": ["integer"],
        "good": ["bool"],
        "day": ["datetime", "keyword"],
        "taken_at": ["datetime", "keyword"],
        "place": ["geo"],
        "camera.maker": ["keyword"],
        "camera.iso": ["float"],
        "tags": ["keyword"],
        "odd name": ["keyword"],
    }
    assert sample.fields["album"].most_common(5) == [("sea", 8), ("hills", 4)]
    assert sample.fields["tags"].most_common(1)[0][1] == COUNT
    # A sample leaves out what is not to be kept.
    assert sample_fields(index, keep=lambda *_: False).points == 0


def test_the_most_frequent_values_come_from_an_index(engine: Engine) -> None:
    index = filled(engine)
    index.create_payload_index("album", "keyword")
    found = index.facet("album")
    if index.engine == "faiss":
        assert found is None
    else:
        assert found == [("sea", 8), ("hills", 4)]
        assert index.facet("album", 1) == [("sea", 8)]
        index.create_payload_index("taken_at", "datetime")
    if index.engine == "edge":
        assert index.facet("year") is None  # without an index
        assert index.facet("taken_at") is None


PROBLEMS: list[tuple[list[str], str | None]] = [
    (["album=sea", "year>=2020", "place~38,-9,10", "good=true", "camera.maker=Zed"], None),
    (["taken_at>=2024-06-02", "camera.iso>1", "tags=a", "odd name=x"], None),
    (["year=1"], None),
    (["albun=sea"], "no image has a field 'albun'; did you mean 'album'?"),
    (["Album=sea"], "no image has a field 'Album'; did you mean 'album'?"),
    (["maker=Zed"], "no image has a field 'maker'; did you mean 'camera.maker'?"),
    (["yeer>=2020"], "no image has a field 'yeer'; did you mean 'year'?"),
    (["zzzzzz=1"], "no image has a field 'zzzzzz'; fields are "),
    (['year="2020"'], "'year' holds whole numbers (such as 202"),
    (["album=2020"], '\'album\' holds text (such as "sea", "hills"), and is compared with '),
    (["album>3"], "and is compared with whole numbers or numbers"),
    (["taken_at>3"], "'taken_at' holds dates"),
    (["year>=2024-01-01"], "and is compared with dates"),
    (["album~1,2,3"], "and is compared with places"),
    (["taken_at=2024-06"], "give taken_at>=2024-06-01 and taken_at<2024-07-01"),
    (["taken_at=2024-12"], "give taken_at>=2024-12-01 and taken_at<2025-01-01"),
    (["taken_at=2024"], "give taken_at>=2024-01-01 and taken_at<2025-01-01"),
    (["taken_at=2024-02-30", "day=2024-06-01"], None),
    (["good=1"], "'good' holds true or false"),
]


@pytest.mark.parametrize("most", [100, 6])
def test_what_nothing_can_be_found_by(
    engine: Engine, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload_fields, "SAMPLE", most)
    index = filled(engine)
    sample = sample_fields(index)
    assert sample.complete == (most == 100)
    for where, problem in PROBLEMS:
        found = filter_problems(index, filter_of(where), sample)
        assert [problem in each.message for each in found] == [True] * (problem is not None), where
        assert all(each.kind == ("unknown" if "no image" in problem else "type") for each in found)


def test_a_field_outside_the_sample_is_asked_for(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = filled(engine)
    last = max(image_id(n) for n in range(COUNT))
    index.set_payload({last: {"rare": "x", "rare kind": {"a b": 1}}})
    monkeypatch.setattr(payload_fields, "SAMPLE", 3)
    assert "rare" not in sample_fields(index).fields
    assert filter_problems(index, {"rare": "x", "rare kind.a b": 1}) == []
    (problem,) = filter_problems(index, {"rarer": "x"})
    assert problem.message.startswith("no image has a field 'rarer'; fields are ")


def test_conditions_in_conditions_are_seen(engine: Engine) -> None:
    index = filled(engine)
    inner = models.FieldCondition(key="yer", match=models.MatchValue(value=1))
    empty = models.IsEmptyCondition(is_empty=models.PayloadField(key="missing"))
    filter = models.Filter(should=[models.Filter(must_not=[inner]), empty])
    (problem,) = filter_problems(index, filter)
    assert (problem.field, problem.kind, problem.nearest) == ("yer", "unknown", "year")
    assert filter_problems(index, None) == filter_problems(index, {}) == []
    with pytest.raises(ConfigError):
        filter_problems(index, {"year": 1.5})


def test_strict_mode_leaves_it_at_the_sample(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    from index_engines import qdrant_engine

    engine = qdrant_engine(stand_in.url)
    filled(engine).close()
    limits = {"enabled": True, "unindexed_filtering_retrieve": False, "max_query_limit": 4}
    stand_in.answer("PATCH", ["collections", "images"], {"strict_mode_config": limits})
    index = engine.open()
    monkeypatch.setattr(payload_fields, "SAMPLE", 8)
    assert sample_fields(index).points == 8  # two pages
    (problem,) = filter_problems(index, {"yer": 2020})
    engine.close()
    assert problem.message == ("none of 8 images looked at has a field 'yer'; did you mean 'year'?")


def test_nearest_name() -> None:
    names = ["album", "camera.maker", "camera.model", "lens.maker"]
    assert nearest_name("ALBUM", names) == "album"
    assert nearest_name("model", names) == "camera.model"
    assert nearest_name("camera.makr", names) == "camera.maker"
    assert nearest_name("weather", names) is None
