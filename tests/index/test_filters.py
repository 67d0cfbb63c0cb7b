"""Plain dicts that choose points, alike on every engine."""

from __future__ import annotations

import subprocess
import sys
from enum import IntEnum
from typing import Any

import numpy as np
import pytest
from index_engines import Engine, image_id, unit_vectors

from edje_qdrant.errors import ConfigError
from edje_qdrant.index import Filter, VectorIndex
from edje_qdrant.index.edge import filter as edge_conditions
from edje_qdrant.types import Point

PAYLOADS: list[dict[str, Any]] = [
    {"album": "2024", "year": 2024, "ok": True},
    {"album": "2024", "year": 2023, "ok": False},
    {"album": "2023", "year": 2023, "ok": 1},
    {"album": 2024, "year": "2024", "ok": 0},
    {"album": ["2024", "2023"], "year": [2020, True], "ok": "True"},
    {"camera": {"maker": "Ö & Söhne", "lens mm": 50, "a.b": {"c": 1}}, "year": 2024.0},
    {"camera.maker": "dotted", "album": "", "year": None, "ok": None},
    {"camera": [{"maker": "one"}, {"maker": "two"}], "album": [], "big": 2**63 - 1},
    {},
]

CASES: list[tuple[Filter | None, list[int]]] = [
    (None, [*range(9)]),
    ({}, [*range(9)]),
    ({"album": "2024"}, [0, 1, 4]),
    ({"album": 2024}, [3]),
    ({"album": ""}, [6]),
    ({"album": "202"}, []),
    ({"album": ["2023", "none"]}, [2, 4]),
    ({"album": ("2023", 2024, "")}, [2, 3, 4, 6]),
    ({"year": 2024}, [0]),
    ({"year": [2024, 2023]}, [0, 1, 2]),
    ({"year": [2024, "2024"]}, [0, 3]),
    ({"year": [2024, True]}, [0, 4]),
    ({"ok": True}, [0]),
    ({"ok": False}, [1]),
    ({"ok": 1}, [2]),
    ({"ok": 0}, [3]),
    ({"ok": [True, False]}, [0, 1]),
    ({"ok": [True, 0, "True"]}, [0, 3, 4]),
    ({"album": "2024", "year": [2023, 2024], "ok": True}, [0]),
    ({"album": "2024", "year": 2023, "ok": True}, []),
    ({"camera.maker": "Ö & Söhne"}, [5]),
    ({"camera.maker": "dotted"}, []),
    ({"camera.lens mm": 50}, [5]),
    ({"camera.lens mm": [35, 50], "camera.maker": ["x", "Ö & Söhne"]}, [5]),
    ({"big": 2**63 - 1}, [7]),
    ({"never": -(2**63)}, []),
]


def filled(engine: Engine) -> VectorIndex:
    index = engine.create()
    vectors = unit_vectors(len(PAYLOADS))
    index.upsert(
        [
            Point(image_id(n), vector, payload)
            for n, (vector, payload) in enumerate(zip(vectors, PAYLOADS, strict=True))
        ]
    )
    return index


def found(index: VectorIndex, filter: Filter | None) -> list[int]:
    numbers = {image_id(n): n for n in range(len(PAYLOADS))}
    return sorted(numbers[p.id] for page in index.scroll(filter=filter) for p in page)


def test_what_filters_let_through(engine: Engine) -> None:
    index = filled(engine)
    for chosen, expected in CASES:
        assert found(index, chosen) == expected, chosen
        assert index.count(chosen) == len(expected), chosen


def test_delete_matching(engine: Engine) -> None:
    everything = {*range(len(PAYLOADS))}
    for chosen, expected in CASES:
        if not chosen:
            continue
        index = filled(engine) if not engine.opened else engine.opened[0]
        vectors = unit_vectors(len(PAYLOADS))
        index.upsert([Point(image_id(n), vectors[n], PAYLOADS[n]) for n in everything])
        index.delete_matching(chosen)
        assert {*found(index, None)} == everything - {*expected}, chosen


def test_deletes_by_filter_last(engine: Engine) -> None:
    index = filled(engine)
    index.delete_matching({"album": "2024"})
    index.close()
    assert found(engine.open(), {}) == [2, 3, 5, 6, 7, 8]


@pytest.mark.parametrize("chosen", [None, {}])
def test_deleting_everything_is_refused(engine: Engine, chosen: Any) -> None:
    index = filled(engine)
    with pytest.raises(ConfigError, match="would delete everything"):
        index.delete_matching(chosen)
    assert index.count() == len(PAYLOADS)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"year": 3.5}, "'year' asks for 3.5.*whole number or text"),
        ({"year": np.float32(2)}, "'year' asks for.*floats"),
        ({"year": [2023, 2024.0]}, "'year' asks for 2024.0"),
        ({"year": None}, "'year' asks for None.*such as False"),
        ({"year": [None]}, "'year' asks for None"),
        ({"camera": {"maker": "x"}}, r"'camera' asks for an object.*'camera\.maker'"),
        ({"camera": {}}, r"'camera' asks for an object.*'camera\.name'"),
        ({"year": [[2023]]}, "'year' asks for .*list.*one list"),
        ({"year": {2023}}, "'year' asks for .*set"),
        ({"year": np.int64(2023)}, "'year' asks for .*int64"),
        ({"year": b"x"}, "'year' asks for .*bytes"),
        ({"year": []}, "'year' has an empty list"),
        ({"year": 2**63}, "'year' asks for 9223372036854775808.*64 bits.*text"),
        ({"year": -(2**63) - 1}, "64 bits"),
        ({"year": [1, 1 << 20_000]}, "asks for a number of 20001 bits, which has more than 64"),
        ({"name": "\udcff"}, "'name' asks for .*no text"),
        ({"_edje": "x"}, "'_edje' is reserved"),
        ({"_edje.record": 7}, r"'_edje\.record' is reserved"),
        ({"": "x"}, "'' has an empty name"),
        ({"a..b": "x"}, r"'a\.\.b' has an empty name"),
        ({".a": "x"}, "empty name"),
        ({"a.": "x"}, "empty name"),
        ({"people[].name": "x"}, "bracket"),
        ({'a"b': "x"}, "quotation mark"),
        ({"a\\b": "x"}, "backslash"),
        ({7: "x"}, "filter key 7 is a int"),
        ({"fine": 1, "year": 3.5}, "'year'"),
        ("album = 2024", "filter is a str; give a dict"),
        ([("album", "2024")], "filter is a list; give a dict"),
    ],
)
def test_filters_that_are_refused(engine: Engine, bad: Any, words: str) -> None:
    index = filled(engine)
    for use in (index.count, index.delete_matching, lambda chosen: index.scroll(filter=chosen)):
        with pytest.raises(ConfigError, match=words):
            use(bad)
    assert index.count() == len(PAYLOADS)


def test_numbers_of_an_enum(engine: Engine) -> None:
    year = IntEnum("year", {"last": 2023, "this": 2024})
    index = filled(engine)
    assert found(index, {"year": year(2023)}) == [1, 2]
    assert found(index, {"year": [*year]}) == [0, 1, 2]


@pytest.mark.parametrize("value", [True, False, 1, 0])
def test_truth_is_no_number_for_the_embedded_engine(value: int) -> None:
    given = edge_conditions._edge_value(value).value
    assert given == value
    assert type(given) is type(value)


@pytest.mark.parametrize("function", ["check_filter", "require_filter"])
def test_checks_load_no_engine(function: str) -> None:
    code = f"""
import sys
from edje_qdrant.index.filters import filter as filters
filters.{function}({{"album": ["2024", 1, True]}})
assert not {{"qdrant_client", "qdrant_edge"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
