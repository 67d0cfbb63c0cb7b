"""Indexes of payload fields."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, get_args

import pytest
from index_engines import Engine, edge_engine, image_id, qdrant_engine, unit_vectors
from index_stand_in import StandIn
from qdrant_client import QdrantClient, models

from edje_qdrant.errors import ConfigError, StoreError
from edje_qdrant.index.payload_indexes import PayloadKind
from edje_qdrant.types import Point

KINDS = get_args(PayloadKind)
VALUES: dict[str, Any] = {
    "keyword": "a red kite",
    "integer": 2024,
    "float": 0.5,
    "bool": True,
    "datetime": "2024-05-01T10:00:00Z",
    "geo": {"lon": 13.4, "lat": 52.5},
    "text": "a red kite over a lake",
    "uuid": image_id(99),
}
CONDITIONS: dict[str, dict[str, Any]] = {
    "keyword": {"match": models.MatchValue(value="a red kite")},
    "integer": {"range": models.Range(gte=2024)},
    "float": {"range": models.Range(lt=0.6)},
    "bool": {"match": models.MatchValue(value=True)},
    "datetime": {"range": models.DatetimeRange(gte="2024-05-01", lt="2024-05-02")},
    "geo": {
        "geo_radius": models.GeoRadius(center=models.GeoPoint(lon=13.4, lat=52.5), radius=10.0)
    },
    "text": {"match": models.MatchPhrase(phrase="kite OVER")},
    "uuid": {"match": models.MatchValue(value=image_id(99))},
}


def points() -> list[Point]:
    vectors = unit_vectors(4)
    payloads: list[dict[str, Any]] = [VALUES, {"keyword": "x", "text": "over kite"}, {}, {"a": {}}]
    return [Point(image_id(n), vectors[n], payload) for n, payload in enumerate(payloads)]


def check_filters(index: Any) -> None:
    for kind in KINDS:
        chosen = models.Filter(must=[models.FieldCondition(key=kind, **CONDITIONS[kind])])
        assert index.count(chosen) == 1, kind
        assert [c.image_id for c in index.nearest(unit_vectors(1), 4, filter=chosen)[0]] == [
            image_id(0)
        ]


def test_every_kind_on_every_engine(engine: Engine) -> None:
    index = engine.create()
    assert index.payload_indexes() == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the client warns where this does nothing
        for kind in KINDS[:4]:
            index.create_payload_index(kind, kind)
        index.upsert(points())
        for kind in KINDS[4:]:
            index.create_payload_index(kind, kind)
            index.create_payload_index(kind, kind)  # again changes nothing
    check_filters(index)


@pytest.mark.parametrize("kind_of_engine", ["edge", "http"])
def test_they_can_be_read(kind_of_engine: str, tmp_path: Path, stand_in: StandIn) -> None:
    engine = edge_engine(tmp_path) if kind_of_engine == "edge" else qdrant_engine(stand_in.url)
    index = engine.create()
    index.upsert(points())
    for kind in KINDS:
        index.create_payload_index(kind, kind)
    index.create_payload_index("a.b", "float")
    index.create_payload_index('a."b c"', "integer")
    index.create_payload_index("a.b", "integer")
    expected = {"a.b": "integer", 'a."b c"': "integer", **{kind: kind for kind in KINDS}}
    assert index.payload_indexes() == expected
    index.optimize()
    index.close()
    reopened = engine.open()
    assert reopened.payload_indexes() == expected
    check_filters(reopened)
    engine.close()


def test_a_server_is_asked_to_index_phrases(stand_in: StandIn) -> None:
    engine = qdrant_engine(stand_in.url)
    index = engine.create()
    index.create_payload_index("text", "text")
    (asked,) = stand_in.indexed["images"].values()
    assert asked["params"]["phrase_matching"] is True
    engine.close()


def test_in_memory_there_are_none(memory: QdrantClient) -> None:
    engine = qdrant_engine(memory)
    index = engine.create()
    index.upsert(points())
    index.create_payload_index("keyword", "keyword")
    assert index.payload_indexes() == {}
    check_filters(index)
    engine.close()


@pytest.mark.parametrize(
    ("field", "kind", "words"),
    [
        ("year", "number", "kind is 'number'; give one of keyword, integer"),
        ("_edje", "keyword", "'_edje' is reserved"),
        ("_edje.record", "integer", "reserved"),
        ("lens mm", "integer", "field 'lens mm' is no path.*double quotes"),
        ("", "integer", "no path"),
        ("people[].age", "integer", "objects of a list"),
        ("tags[]", "keyword", "index 'tags', not"),
    ],
)
def test_what_cannot_be_indexed(engine: Engine, field: str, kind: Any, words: str) -> None:
    index = engine.create()
    with pytest.raises(ConfigError, match=words):
        index.create_payload_index(field, kind)
    assert index.payload_indexes() == {}


def test_a_closed_index_makes_none(engine: Engine) -> None:
    index = engine.create()
    index.close()
    for use in (lambda: index.create_payload_index("a", "keyword"), index.payload_indexes):
        with pytest.raises(StoreError, match="closed"):
            use()
