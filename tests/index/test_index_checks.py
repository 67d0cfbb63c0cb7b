from __future__ import annotations

import numpy as np
import pytest
from index_engines import image_id, make_points, unit_vectors
from rounding import DOT, float32_slack

from edje_qdrant.errors import ConfigError
from edje_qdrant.index.batches import by_payload, in_batches, in_runs, vectors_per_request
from edje_qdrant.index.validate import (
    check_ids,
    check_keys,
    check_payloads,
    check_points,
    check_vectors,
)
from edje_qdrant.types import Point


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_vectors_come_out_unit_length(dtype: type[np.floating]) -> None:
    unit = check_vectors((unit_vectors(10) * 3).astype(dtype), 8)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(
        np.linalg.norm(unit, axis=1), 1, atol=float32_slack(1, roundings=DOT)
    )


def test_the_largest_floats_have_a_direction() -> None:
    huge = np.full((1, 4), np.finfo(np.float64).max)
    np.testing.assert_allclose(check_vectors(huge, 4), 0.5)


def test_the_unfit_vector_is_named() -> None:
    vectors = unit_vectors(5)
    vectors[3, 2] = np.nan
    with pytest.raises(ConfigError, match="vector 3 of 5"):
        check_vectors(vectors, 8)


def test_ids_come_back_once_and_in_order() -> None:
    a, b = image_id(1), image_id(2)
    assert check_ids([b, a, b]) == [b, a]


@pytest.mark.parametrize("bad", ["", "7", image_id(1).replace("-", ""), 7, None])
def test_bad_ids(bad: str) -> None:
    with pytest.raises(ConfigError, match="image id"):
        check_ids([image_id(0), bad])


def test_points_are_copied() -> None:
    payload = {"tags": ["a"], "pair": (1, 2)}
    (checked,) = check_points([Point(image_id(0), unit_vectors(1)[0], payload)], 8)
    payload["tags"].append("b")
    assert checked.payload == {"tags": ["a"], "pair": [1, 2]}


def test_batches_are_bounded_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    light = check_points(make_points(unit_vectors(10)), 8)
    assert [len(batch) for batch in in_batches(light, 4)] == [4, 4, 2]
    monkeypatch.setattr("edje_qdrant.index.batches._REQUEST_BYTES", 16_000)
    payloads = [{"x": "a" * size} for size in (9_000, 9_000, 1, 20_000, 1)]
    heavy = check_points(
        [
            Point(image_id(n), vector, payload)
            for n, (vector, payload) in enumerate(zip(unit_vectors(5), payloads, strict=True))
        ],
        8,
    )
    assert [len(batch) for batch in in_batches(heavy, 4)] == [1, 2, 1, 1]


def test_at_least_one_vector_travels() -> None:
    assert vectors_per_request(1024) > 500
    assert vectors_per_request(10**9) == 1


def test_runs() -> None:
    assert list(in_runs([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
    assert list(in_runs([], 2)) == []


def test_payloads_to_set_are_copied_and_grouped() -> None:
    tags = ["a"]
    checked = check_payloads(
        {
            image_id(0): {"tags": tags},
            image_id(1): {},
            image_id(2): {"tags": ("a",)},
            image_id(3): {"tags": ["a"], "deep": {"none": None}},
        }
    )
    tags.append("b")
    assert by_payload(checked) == [
        ([image_id(0), image_id(2)], {"tags": ["a"]}),
        ([image_id(3)], {"tags": ["a"], "deep": {"none": None}}),
    ]


def test_payloads_count_with_their_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edje_qdrant.index.batches._REQUEST_BYTES", 16_000)
    checked = check_payloads({image_id(n): {"x": "a" * 3_850} for n in range(9)})
    assert [len(batch) for batch in in_batches(checked, 100)] == [3, 3, 3]


def test_keys_come_back_as_paths() -> None:
    assert check_keys(["path", "a.b", "path", "sp ace", "", "tags[]", "猫"]) == [
        "path",
        '"a.b"',
        '"sp ace"',
        '""',
        '"tags[]"',
        '"猫"',
    ]
