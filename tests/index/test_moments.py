"""Dates and times in payloads and filters, alike on every engine."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from typing import Any

import pytest
from index_engines import Engine, image_id, unit_vectors
from qdrant_client import models

from edje_qdrant.errors import ConfigError
from edje_qdrant.index import VectorIndex
from edje_qdrant.index.moments import moment_text, with_moments_as_text
from edje_qdrant.types import Point

EAST = timezone(timedelta(hours=5, minutes=30))
TAKEN = [
    datetime(2024, 5, 17, 12, tzinfo=EAST),
    datetime(2024, 5, 17, 12),  # without a time zone: UTC
    date(2024, 5, 18),
]
TEXTS = ["2024-05-17T06:30:00Z", "2024-05-17T12:00:00Z", "2024-05-18"]


def test_texts_of_moments() -> None:
    assert [*map(moment_text, TAKEN)] == TEXTS
    assert moment_text(datetime(33, 1, 2, 3, 4, 5, 6)) == "0033-01-02T03:04:05.000006Z"
    with pytest.raises(ValueError, match="in no year"):
        moment_text(datetime(1, 1, 1, tzinfo=EAST))
    nested = {"a": [TAKEN[0], {"b": TAKEN[2]}], "c": 1, "d": None}
    assert with_moments_as_text(nested) == {"a": [TEXTS[0], {"b": TEXTS[2]}], "c": 1, "d": None}


def filled(engine: Engine) -> VectorIndex:
    index = engine.create()
    vectors = unit_vectors(3)
    index.upsert(
        [
            Point(image_id(n), vectors[n], {"taken": taken, "log": {"seen": [taken]}, "_edje": {}})
            for n, taken in enumerate(TAKEN)
        ]
    )
    return index


def found(index: VectorIndex, filter: Any) -> list[int]:
    (hits,) = index.nearest(unit_vectors(1), 3, filter=filter)
    return sorted(n for n in range(3) if image_id(n) in {hit.image_id for hit in hits})


def test_dates_are_stored_as_text(engine: Engine) -> None:
    index = filled(engine)
    payloads = index.retrieve([image_id(n) for n in range(3)])
    for n, text in enumerate(TEXTS):
        assert payloads[image_id(n)] == {"taken": text, "log": {"seen": [text]}, "_edje": {}}
    index.set_payload({image_id(0): {"taken": TAKEN[2]}})
    assert index.retrieve([image_id(0)])[image_id(0)]["taken"] == TEXTS[2]


def test_a_dict_compares_with_the_stored_text(engine: Engine) -> None:
    index = filled(engine)
    assert found(index, {"taken": datetime(2024, 5, 17, 6, 30, tzinfo=timezone.utc)}) == [0]
    assert found(index, {"taken": [TAKEN[1], TAKEN[2], "2024"]}) == [1, 2]
    assert found(index, {"log.seen": TAKEN[0].astimezone(timezone.utc)}) == [0]  # type: ignore[attr-defined]


def test_a_range_of_dates_finds_them(engine: Engine) -> None:
    index = filled(engine)
    within = models.DatetimeRange(gt=datetime(2024, 5, 17, 7), lte=datetime(2024, 5, 18))
    condition = models.FieldCondition(key="taken", range=within)
    assert found(index, models.Filter(must=[condition])) == [1, 2]


def test_moments_that_have_no_text_are_refused(engine: Engine) -> None:
    index = filled(engine)
    first = datetime(1, 1, 1, tzinfo=EAST)
    with pytest.raises(ConfigError, match=r"payload of point .* in no year"):
        index.set_payload({image_id(0): {"taken": first}})
    with pytest.raises(ConfigError, match=r"'taken'.* in no year"):
        found(index, {"taken": first})
    with pytest.raises(ConfigError, match="cannot be written as JSON"):
        index.set_payload({image_id(0): {"taken": TAKEN[0].time()}})  # type: ignore[attr-defined]
