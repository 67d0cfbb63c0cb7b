"""Points in order of their dates, alike on every engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from index_engines import Engine, image_id, unit_vectors

from edje_qdrant.errors import ConfigError
from edje_qdrant.index import VectorIndex
from edje_qdrant.types import Point

FIELDS = ("taken_at", "modified_at")
PAYLOADS: list[dict[str, Any]] = [
    {"taken_at": "2024-07-14T18:30:05+01:00"},
    {"taken_at": "2024-07-14T17:45:00Z"},  # later than the one above
    {"modified_at": "2024-07-14T17:40:00Z"},  # between the two
    {"taken_at": "2001-02-03", "modified_at": "2025-01-01T00:00:00Z"},
    {"taken_at": "yesterday", "modified_at": "2024-01-01T00:00:00Z"},
    {"title": "without a date"},
    {"taken_at": "now"},
    *[{"taken_at": "2010-01-01T12:00:00Z", "number": n} for n in range(12)],
    *[{"modified_at": "2010-01-01T12:00:00Z", "number": n} for n in range(5)],
    {"taken_at": "2010-01-01T12:00:00.250Z"},
    {"taken_at": "2010-01-01T11:59:59.750Z"},
    {"title": "without a date, too"},
]


def filled(engine: Engine) -> VectorIndex:
    index = engine.create()
    vectors = unit_vectors(len(PAYLOADS))
    index.upsert([Point(image_id(n), vectors[n], PAYLOADS[n]) for n in range(len(PAYLOADS))])
    for field in FIELDS:
        index.create_payload_index(field, "datetime")
    return index


def listed(index: VectorIndex, size: int, **options: Any) -> list[str]:
    """Return the ids of all pages; positions go through JSON, as in a cursor."""
    found: list[str] = []
    start = None
    while True:
        page = index.newest(FIELDS, start=start, size=size, **options)
        assert len(page.points) <= size
        found += [point.id for point in page.points]
        if page.next is None:
            return found
        assert len(page.points) == size
        start = json.loads(json.dumps(page.next))


def in_order() -> list[str]:
    tied = [*sorted(image_id(n) for n in range(7, 19)), *sorted(image_id(n) for n in range(19, 24))]
    dated = [image_id(n) for n in (1, 2, 0, 4)]
    last = sorted(image_id(n) for n in (5, 6, 26))
    return [*dated, image_id(24), *tied, image_id(25), image_id(3), *last]


@pytest.mark.parametrize("size", [1, 3, 4, 12, 27, 100])
def test_latest_first_by_the_first_field_with_a_date(engine: Engine, size: int) -> None:
    index = filled(engine)
    found, expected = listed(index, size), in_order()
    if index.engine == "faiss":  # equal dates of two fields are one order there
        tied = slice(5, 22)
        expected[tied] = sorted(expected[tied])
    assert found == expected


def test_with_a_filter(engine: Engine) -> None:
    index = filled(engine)
    found = listed(index, 2, filter={"number": [0, 3, 4]})
    assert sorted(found) == sorted(image_id(n) for n in (7, 10, 11, 19, 22, 23))


def test_points_come_with_payloads_and_without_token_bytes(engine: Engine) -> None:
    index = engine.create()
    payload = {"taken_at": "2024-01-01", "_edje": {"record": 1, "tokens": "QUJD"}}
    index.upsert([Point(image_id(0), unit_vectors(1)[0], payload)])
    index.create_payload_index("taken_at", "datetime")
    (point,) = index.newest(["taken_at"]).points
    assert point.payload == {"taken_at": "2024-01-01", "_edje": {"record": 1}}


def test_a_page_after_points_were_deleted(engine: Engine) -> None:
    index = filled(engine)
    first = index.newest(FIELDS, size=9)
    index.delete([point.id for point in first.points])
    rest = index.newest(FIELDS, start=first.next, size=100)
    assert not {point.id for point in rest.points} & {point.id for point in first.points}
    assert len(rest.points) == len(PAYLOADS) - 9


def test_fields_that_points_cannot_be_ordered_by(engine: Engine) -> None:
    index = engine.create()
    index.create_payload_index("modified_at", "datetime")
    ordered = index.orders(FIELDS)
    if ordered == FIELDS:  # the engine needs no index
        return
    assert ordered == ("modified_at",)
    with pytest.raises(ConfigError, match="no payload index of the kind datetime of taken_at"):
        index.newest(FIELDS)


@pytest.mark.parametrize("start", [7, "next", [1], [[], "x", 3], [[["a", "b"], []], None], {}])
def test_positions_that_are_none(engine: Engine, start: Any) -> None:
    index = filled(engine)
    with pytest.raises(ConfigError, match="the position is not of this list"):
        index.newest(FIELDS, start=start)
