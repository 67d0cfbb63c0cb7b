"""Whole numbers near and beyond 2^53 and 2^63: exact on every engine, or refused by name."""

from __future__ import annotations

import operator
from typing import Any

import pytest
from index_engines import Engine, image_id, unit_vectors
from qdrant_client import models

from edje_qdrant.errors import ConfigError
from edje_qdrant.index import Filter, VectorIndex
from edje_qdrant.index.filters.from_json import filter_from_json
from edje_qdrant.types import Point

EDGE = 2**53
VALUES = [
    *(sign * (EDGE + step) for sign in (1, -1) for step in range(-2, 3)),
    1_715_940_000_123_456_789,  # nanoseconds
    1_715_940_000_123_456_790,
    *(-2, -1, 0, 1, 2),
    *(2**63 - 1, 2**63 - 2, -(2**63), -(2**63) + 1),
]
COMPARE = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}


def filled(engine: Engine, indexed: bool) -> VectorIndex:
    index = engine.create()
    vectors = unit_vectors(len(VALUES))
    index.upsert([Point(image_id(n), vectors[n], {"n": v}) for n, v in enumerate(VALUES)])
    if indexed:
        index.create_payload_index("n", "integer")
    return index


def found(index: VectorIndex, chosen: Filter) -> list[int]:
    ids = {image_id(n): value for n, value in enumerate(VALUES)}
    return sorted(ids[p.id] for page in index.scroll(filter=chosen, batch_size=99) for p in page)


@pytest.mark.parametrize("indexed", [False, True])
def test_each_is_matched_alone(engine: Engine, indexed: bool) -> None:
    index = filled(engine, indexed)
    assert [index.retrieve([image_id(n)])[image_id(n)]["n"] for n in range(len(VALUES))] == VALUES
    for value in VALUES:
        assert found(index, {"n": value}) == [value]
        assert found(index, {"n": [value, 7]}) == [value]
        others = models.MatchExcept(**{"except": [value]})
        chosen = models.Filter(must=[models.FieldCondition(key="n", match=others)])
        assert found(index, chosen) == sorted({*VALUES} - {value})


@pytest.mark.parametrize("indexed", [False, True])
def test_ranges_below_2_to_the_53_are_exact(engine: Engine, indexed: bool) -> None:
    index = filled(engine, indexed)
    for bound in (EDGE - 1, -EDGE + 1, EDGE - 2, 0, 0.5, -0.5, 1.999):
        for name, compare in COMPARE.items():
            asked = models.Range(**{name: float(bound)})
            chosen = models.Filter(must=[models.FieldCondition(key="n", range=asked)])
            expected = sorted(value for value in VALUES if compare(value, bound))
            assert found(index, chosen) == expected, (name, bound)


@pytest.mark.parametrize("name", COMPARE)
@pytest.mark.parametrize("bound", [EDGE, EDGE + 1, -EDGE, -EDGE - 1, 2**63, 1e300])
def test_ranges_from_2_to_the_53_on_are_refused(engine: Engine, name: str, bound: Any) -> None:
    index = engine.create()
    condition = {"key": "n", "range": {name: bound}}
    chosen = models.Filter(must_not=[models.FieldCondition(**condition)])
    words = rf"range on 'n': {name} is -?\d+; from 2\^53 .* on, numbers are rounded"
    for use in (index.count, index.delete_matching, lambda f: index.scroll(filter=f)):
        with pytest.raises(ConfigError, match=r"filter\.must_not\[0\]\." + words):
            use(chosen)
    with pytest.raises(ConfigError, match=words):
        filter_from_json({"must": [condition]})


@pytest.mark.parametrize("number", [2**63, 2**64 + 1, -(2**63) - 1, 10**30])
def test_what_has_more_than_64_bits_is_not_stored(engine: Engine, number: int) -> None:
    index = engine.create()
    vector = unit_vectors(1)[0]
    payload = {"a": [{"n": number}]}
    with pytest.raises(ConfigError, match=f"point {image_id(0)} cannot be stored.*64 bits.*text"):
        index.upsert([Point(image_id(0), vector, payload)])
    index.upsert([Point(image_id(0), vector, {"n": 1})])
    with pytest.raises(ConfigError, match=f"point {image_id(0)} cannot be stored.*64 bits.*text"):
        index.set_payload({image_id(0): payload})
    assert index.retrieve([image_id(0)]) == {image_id(0): {"n": 1}}
