"""Random calls on every engine, against a plain dict that is told the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from index_engines import Engine, image_id, unit_vectors
from rounding import DOT, float32_slack

from edje_qdrant.types import Point

IDS = [image_id(n) for n in range(40)]
KEYS = ["album", "n", "a.b", "_edje", "deep"]
VALUES: list[Any] = [
    "x",
    "y",
    0,
    1,
    True,
    False,
    2.5,
    ["x", 1],
    {"in": "x"},
    {"tokens": "Q", "r": 1},
]
FILTERS: list[dict[str, Any]] = [
    {"album": "x"},
    {"album": ["x", 1]},
    {"n": [True, 0]},
    {"deep.in": "x"},
    {"n": 1, "album": ["y", "x", False]},
]


def lets_through(chosen: dict[str, Any], payload: dict[str, Any]) -> bool:
    def holds(key: str, wanted: Any) -> bool:
        value: Any = payload
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        stored = value if isinstance(value, list) else [value]
        wanted = wanted if isinstance(wanted, list) else [wanted]
        return any(type(a) is type(b) and a == b for a in stored for b in wanted)

    return all(holds(key, wanted) for key, wanted in chosen.items())


def without_tokens(payload: dict[str, Any]) -> dict[str, Any]:
    kept = payload.get("_edje")
    if not isinstance(kept, dict):
        return payload
    return {**payload, "_edje": {key: kept[key] for key in kept if key != "tokens"}}


@pytest.mark.parametrize("seed", range(4))
def test_random_calls(engine: Engine, seed: int) -> None:
    random = np.random.default_rng(seed)
    vectors = unit_vectors(500)
    model: dict[str, tuple[int, dict[str, Any]]] = {}

    def some(items: list[Any], most: int) -> list[Any]:
        return [items[i] for i in random.permutation(len(items))[: random.integers(0, most + 1)]]

    def some_payload() -> dict[str, Any]:
        return {key: VALUES[random.integers(len(VALUES))] for key in some(KEYS, 3)}

    index = engine.create()
    for turn in range(60):
        action = random.integers(8)
        if action <= 1:
            for image in some(IDS, 12):
                model[image] = (int(random.integers(500)), some_payload())
            written = [Point(image, vectors[v], p) for image, (v, p) in model.items()]
            index.upsert(written)
        elif action <= 3:
            payloads = {image: some_payload() for image in some(IDS, 12)}
            index.set_payload(payloads)
            for image in model.keys() & payloads.keys():
                model[image] = (model[image][0], {**model[image][1], **payloads[image]})
        elif action == 4:
            images, keys = some(IDS, 12), some(KEYS, 2)
            index.remove_payload_keys(images, keys)
            for image in model.keys() & {*images}:
                vector, payload = model[image]
                model[image] = (vector, {k: v for k, v in payload.items() if k not in keys})
        elif action == 5:
            images = some(IDS, 4)
            index.delete(images)
            model = {image: kept for image, kept in model.items() if image not in images}
        elif action == 6:
            chosen = FILTERS[random.integers(len(FILTERS))]
            index.delete_matching(chosen)
            model = {i: kept for i, kept in model.items() if not lets_through(chosen, kept[1])}
        else:
            index.flush()
            index.optimize()
            if turn % 2:
                index.close()
                index = engine.open()

        assert index.retrieve(IDS) == {image: payload for image, (_, payload) in model.items()}
        chosen = FILTERS[turn % len(FILTERS)]
        right = sorted(i for i, (_, payload) in model.items() if lets_through(chosen, payload))
        assert index.count(chosen) == len(right)
        pages = [*index.scroll(batch_size=3, filter=chosen, vectors=True)]
        assert [point.id for page in pages for point in page] == right
        for page in pages:
            for point in page:
                vector, payload = model[point.id]
                assert point.payload == without_tokens(payload)
                np.testing.assert_allclose(
                    point.vector, vectors[vector], atol=float32_slack(1, roundings=DOT)
                )
    assert index.count() == len(model)
