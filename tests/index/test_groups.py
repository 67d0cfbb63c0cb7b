from __future__ import annotations

from typing import Any

import pytest
from index_engines import Engine, image_id, unit_vectors
from qdrant_client import models

from edje_qdrant.errors import ConfigError
from edje_qdrant.index import beyond_groups, check_group_field, field_value, is_group
from edje_qdrant.types import Point

VALUES: list[Any] = ["a", "b", "a b", 1, 2, True, False, "1", None, ["a", "c"], 1.5, {"x": 1}]


@pytest.mark.parametrize("field", ["kind", "of.kind"])
@pytest.mark.parametrize("groups", [["a"], [1], [True], ["a", 2, False, "1"]])
def test_whole_groups_and_pictures_are_left_out(
    engine: Engine, field: str, groups: list[Any]
) -> None:
    index = engine.create()
    vectors = unit_vectors(len(VALUES))
    payloads = [{"kind": v} if field == "kind" else {"of": {"kind": v}} for v in VALUES]
    index.upsert([Point(image_id(n), vectors[n], p) for n, p in enumerate(payloads)])
    for filter in (
        None,
        {"none": "x"},
        models.Filter(must_not=[models.HasIdCondition(has_id=[image_id(1)])]),
    ):
        chosen = beyond_groups(filter, field, groups, [image_id(4)])
        found = index.nearest(vectors[:1], 50, filter=chosen)[0]
        left = {
            n
            for n, value in enumerate(VALUES)
            if n != 4
            and not any(type(value) is type(g) and value == g for g in groups)
            and not (isinstance(value, list) and "a" in groups)
        }
        if isinstance(filter, dict):
            left = set()
        elif filter is not None:
            left -= {1}
        assert {c.image_id for c in found} == {image_id(n) for n in left}


def test_values_of_fields() -> None:
    payload = {"a": {"b": {"c": 3}, "n": None}, "x.y": 1}
    assert field_value(payload, "a.b.c") == 3
    for field in ("a.b.d", "a.n", "a.n.b", "b", "x.y", "a.b.c.d"):
        assert field_value(payload, field) is None
    assert [is_group(v) for v in ("a", 1, True, None, 1.5, ["a"], {})] == [True] * 3 + [False] * 4


@pytest.mark.parametrize("field", ["", "_edje", "_edje.tokens", "a..b", "a[]", 'a"b'])
def test_fields_that_group_nothing(field: str) -> None:
    with pytest.raises(ConfigError, match="group_by"):
        check_group_field(field)
