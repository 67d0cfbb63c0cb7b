"""Payloads changed in place, alike on every engine."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from index_engines import Engine, image_id, make_points, unit_vectors

from edje_qdrant.errors import ConfigError
from edje_qdrant.index import VectorIndex
from edje_qdrant.types import Point


def filled(engine: Engine, count: int = 3) -> VectorIndex:
    index = engine.create()
    index.upsert(make_points(unit_vectors(count)))
    return index


def payload_of(index: VectorIndex, number: int = 0) -> Any:
    return index.retrieve([image_id(number)])[image_id(number)]


def test_keys_are_set_and_others_stay(engine: Engine) -> None:
    index = filled(engine)
    before = index.vectors([image_id(n) for n in range(3)])
    index.set_payload({image_id(1): {"album": "2024", "path": "moved.png"}})
    assert payload_of(index, 1) == {
        "path": "moved.png",
        "album": "2024",
        "_edje": {"record": 1, "tokens": "QUJD" * 10},
    }
    assert payload_of(index, 0) == make_points(unit_vectors(1))[0].payload
    (found,) = index.nearest(unit_vectors(2)[1:], 1)
    assert found[0].payload == {"path": "moved.png", "album": "2024", "_edje": {"record": 1}}
    after = index.vectors([image_id(n) for n in range(3)])
    for key, vector in before.items():
        np.testing.assert_array_equal(after[key], vector)
    index.close()
    assert payload_of(engine.open(), 1)["album"] == "2024"


def test_a_value_is_replaced_whole_however_deep(engine: Engine) -> None:
    index = engine.create()
    deep = {"a": {"b": 1, "c": {"d": 2}}, "list": [{"x": 1}, {"y": 2}]}
    index.upsert([Point(image_id(0), unit_vectors(1)[0], {"deep": deep, "_edje": {"tokens": "Q"}})])
    index.set_payload(
        {image_id(0): {"deep": {"a": {"c": {"e": None}}}, "_edje": {"record": 7, "list": []}}}
    )
    assert payload_of(index) == {
        "deep": {"a": {"c": {"e": None}}},
        "_edje": {"record": 7, "list": []},
    }
    index.set_payload({image_id(0): {"deep": {}, "_edje": {"tokens": "QUJD"}}})
    assert payload_of(index) == {"deep": {}, "_edje": {"tokens": "QUJD"}}
    index.set_payload({image_id(0): {"deep": [1]}})
    assert payload_of(index) == {"deep": [1], "_edje": {"tokens": "QUJD"}}


def test_values_keep_their_types(engine: Engine) -> None:
    index = filled(engine, 1)
    payload = {
        "text": "naïve \u0000 猫",
        "whole": 3,
        "real": 2.0,
        "yes": True,
        "nothing within": [None, {"none": None}],
        "a.b": {"": 1},
        'q"q[0]\\': 1,
        "": "no name",
    }
    index.set_payload({image_id(0): payload})
    back = payload_of(index)
    assert back == {**payload, **make_points(unit_vectors(1))[0].payload}
    assert [type(back[key]) for key in payload] == [type(value) for value in payload.values()]


def test_unknown_ids_are_ignored_and_never_made(engine: Engine) -> None:
    index = filled(engine)
    index.set_payload({image_id(n): {"n": n} for n in (77, 1, 88, 2)})
    assert index.count() == 3
    assert [payload_of(index, n).get("n") for n in range(3)] == [None, 1, 2]
    index.delete([image_id(2)])
    index.set_payload({image_id(2): {"n": 5}, image_id(99): {"n": 5}})
    assert index.existing([image_id(2), image_id(99)]) == set()
    assert index.count() == 2


def test_many_at_once(engine: Engine) -> None:
    index = filled(engine, 300)
    index.flush()
    index.optimize()  # what is optimised is changed by copying
    index.set_payload({image_id(n): {"_edje": {"record": -n}} for n in range(0, 300, 2)})
    index.set_payload({image_id(n): {"all": "same"} for n in range(0, 300, 3)})
    assert index.count() == 300
    payloads = index.retrieve([image_id(n) for n in range(300)])
    for n in range(300):
        expected: dict[str, Any] = {"path": f"{n}.png"}
        expected["_edje"] = {"record": n, "tokens": "QUJD" * 10} if n % 2 else {"record": -n}
        if n % 3 == 0:
            expected["all"] = "same"
        assert payloads[image_id(n)] == expected
    truth = np.argsort(-(unit_vectors(1, seed=1) @ unit_vectors(300).T))[0, :9]
    (found,) = index.nearest(unit_vectors(1, seed=1), 9)
    assert [c.image_id for c in found] == [image_id(int(n)) for n in truth]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({image_id(1): {"gone": None}}, f"{image_id(1)} sets 'gone' to None.*remove_payload_keys"),
        ({image_id(1): {"x": float("nan")}}, f"the payload of point {image_id(1)}"),
        ({image_id(1): {"x": {1, 2}}}, f"the payload of point {image_id(1)}"),
        ({"cat.png": {"x": 1}}, "'cat.png' is not a UUID"),
    ],
)
def test_one_bad_payload_and_none_is_written(
    engine: Engine, bad: dict[str, Any], words: str
) -> None:
    index = filled(engine, 120)
    good = {image_id(n): {"album": "2024"} for n in range(120) if n != 1}
    with pytest.raises(ConfigError, match=words):
        index.set_payload({**good, **bad})
    assert index.count({"album": "2024"}) == 0


def test_empty_calls_change_nothing(engine: Engine) -> None:
    index = filled(engine, 1)
    index.set_payload({})
    index.set_payload({image_id(0): {}})
    index.remove_payload_keys([], ["path"])
    index.remove_payload_keys([image_id(0)], [])
    assert payload_of(index) == make_points(unit_vectors(1))[0].payload


def test_keys_are_removed(engine: Engine) -> None:
    index = filled(engine, 120)
    index.set_payload({image_id(n): {"album": "2024", "n": n} for n in range(120)})
    index.remove_payload_keys([image_id(n) for n in range(60, 200)], ["album", "never", "_edje"])
    payloads = index.retrieve([image_id(n) for n in range(120)])
    assert [{*payloads[image_id(n)]} for n in range(120)] == [
        *[{"path", "n", "album", "_edje"}] * 60,
        *[{"path", "n"}] * 60,
    ]
    assert index.count() == 120


def test_a_removed_key_is_the_one_at_the_top(engine: Engine) -> None:
    index = engine.create()
    kept = {"a": {"b": 1}, "tags": ["x"]}
    odd = {"a.b": 1, "tags[]": 1, "tags[0]": 1, "sp ace": 1, "": 1, "é": 1, "\n": 1}
    index.upsert([Point(image_id(0), unit_vectors(1)[0], {**kept, **odd})])
    index.remove_payload_keys([image_id(0)], [*odd])
    assert payload_of(index) == kept


@pytest.mark.parametrize("key", ['q"q', "back\\slash", 7, None])
def test_keys_that_cannot_be_removed(engine: Engine, key: str) -> None:
    index = filled(engine)
    with pytest.raises(ConfigError, match="payload key"):
        index.remove_payload_keys([image_id(0)], ["path", key])
    with pytest.raises(ConfigError, match=r"give a list of keys, such as \['path'\]"):
        index.remove_payload_keys([image_id(0)], "path")
    assert "path" in payload_of(index)


def test_retrieve_without_token_bytes(engine: Engine) -> None:
    index = filled(engine)
    index.upsert([Point(image_id(3), unit_vectors(1)[0], {"tokens": "mine", "_edje": {"a": 1}})])
    wanted = [image_id(n) for n in (3, 0, 50)]
    assert index.retrieve(wanted, tokens=False) == {
        image_id(3): {"tokens": "mine", "_edje": {"a": 1}},
        image_id(0): {"path": "0.png", "_edje": {"record": 0}},
    }
    assert payload_of(index)["_edje"]["tokens"] == "QUJD" * 10


def test_one_thread_sets_what_another_deletes(engine: Engine) -> None:
    index = filled(engine, 200)
    failures: list[BaseException] = []

    def guarded(work: Any) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def write() -> None:
        for turn in range(5):
            index.set_payload({image_id(n): {"turn": turn, "n": n} for n in range(200)})

    def delete() -> None:
        for n in range(0, 200, 4):
            index.delete([image_id(n), image_id(n + 1)])

    for thread in (guarded(write), guarded(delete)):
        thread.join()
    assert failures == []
    left = {image_id(n): n for n in range(200) if n % 4 > 1}
    payloads = index.retrieve([image_id(n) for n in range(200)])
    assert {key: payload["n"] for key, payload in payloads.items()} == left
    assert {payload["turn"] for payload in payloads.values()} == {4}
