"""What every engine must do alike."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_engines import Engine, edge_engine, image_id, make_points, qdrant_engine, unit_vectors
from index_stand_in import StandIn
from qdrant_client import QdrantClient
from rounding import DOT, float32_slack

from edje_qdrant.errors import CollectionNotFoundError, ConfigError, StoreError
from edje_qdrant.types import Candidate, Point


def test_metadata_comes_back_after_reopening(engine: Engine) -> None:
    metadata = {"encoder": "tiny", "dims": [8, 16], "nested": {"é": None, "on": True, "x": 0.5}}
    index = engine.create(metadata=metadata)
    assert index.metadata == metadata
    index.upsert(make_points(unit_vectors(3)))
    index.close()
    reopened = engine.open()
    assert reopened.metadata == metadata
    assert reopened.count() == 3
    assert reopened.nearest(unit_vectors(1), 3)[0][0].payload["path"] == "0.png"


def test_empty_metadata_comes_back(engine: Engine) -> None:
    engine.create(metadata={}).close()
    assert engine.open().metadata == {}


def test_create_refuses_a_taken_name(engine: Engine) -> None:
    engine.create().close()
    with pytest.raises(StoreError, match="already"):
        engine.create()


def test_create_refuses_a_taken_name_while_it_is_open(engine: Engine) -> None:
    engine.create()
    with pytest.raises(StoreError, match="already"):
        engine.create()


@pytest.mark.parametrize("metadata", [{"x": float("nan")}, {"x": b"bytes"}, {"x": {1, 2}}])
def test_create_refuses_metadata_that_is_no_json(engine: Engine, metadata: dict) -> None:
    with pytest.raises(ConfigError, match="metadata"):
        engine.create(metadata=metadata)
    engine.create(metadata={})  # nothing was left behind


def test_create_refuses_a_width_below_one(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="dim is 0"):
        engine.create(dim=0)


def test_open_names_what_is_there(engine: Engine) -> None:
    engine.create("cats").close()
    engine.create("dogs").close()
    with pytest.raises(CollectionNotFoundError) as caught:
        engine.open("birds")
    assert caught.value.name.endswith("birds")
    known = [name.rpartition("-")[2] for name in caught.value.known]
    assert {"cats", "dogs"} <= set(known)


def test_search_is_exact_and_ordered(engine: Engine) -> None:
    vectors, queries = unit_vectors(300, 32), unit_vectors(7, 32, seed=1)
    index = engine.create(dim=32)
    index.upsert(make_points(vectors))
    index.optimize()
    truth = queries @ vectors.T
    for found, cosines in zip(index.nearest(queries, 20), truth, strict=True):
        best = np.argsort(-cosines)[:20]
        assert [c.image_id for c in found] == [image_id(int(n)) for n in best]
        assert [c.rank for c in found] == list(range(1, 21))
        np.testing.assert_allclose(
            [c.score for c in found], cosines[best], atol=float32_slack(1, roundings=DOT)
        )


def test_scores_are_cosines_whatever_the_length(engine: Engine) -> None:
    vectors = unit_vectors(20)
    scaled = vectors * np.geomspace(1e-25, 1e25, 20, dtype=np.float32)[:, None]
    index = engine.create()
    index.upsert(make_points(scaled))
    query = unit_vectors(1, seed=1)
    (found,) = index.nearest(query * np.float32(1e-3), 20)
    truth = {image_id(n): cosine for n, cosine in enumerate(vectors @ query[0])}
    np.testing.assert_allclose(
        [c.score for c in found],
        [truth[c.image_id] for c in found],
        atol=float32_slack(1, roundings=DOT),
    )
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)


def test_ties_are_broken_by_id(engine: Engine) -> None:
    twin, other = unit_vectors(2)
    index = engine.create()
    index.upsert(make_points(np.stack([other, *[twin] * 12])))
    # Written at another time and place, stored twins may differ in the last bit.
    index.upsert(make_points(np.stack([twin] * 3), start=100))
    twins = sorted([image_id(n) for n in range(1, 13)] + [image_id(100 + n) for n in range(3)])
    (found,) = index.nearest(twin[None], 16)
    assert [c.image_id for c in found] == [*twins, image_id(0)]
    assert len({c.score for c in found[:15]}) == 1
    (cut,) = index.nearest(twin[None], 4)
    assert [c.image_id for c in cut] == twins[:4]


def test_limit_above_count_gives_all(engine: Engine) -> None:
    index = engine.create()
    index.upsert(make_points(unit_vectors(5)))
    found = index.nearest(unit_vectors(2, seed=1), 1000)
    assert [len(hits) for hits in found] == [5, 5]


def test_search_of_an_empty_index(engine: Engine) -> None:
    index = engine.create()
    assert index.nearest(unit_vectors(2), 10) == [[], []]
    assert index.count() == 0


def test_search_without_queries(engine: Engine) -> None:
    index = engine.create()
    index.upsert(make_points(unit_vectors(2)))
    assert index.nearest(np.empty((0, 8), np.float32), 10) == []


@pytest.mark.parametrize(
    ("queries", "limit", "words"),
    [
        (unit_vectors(2, 9), 5, r"\(2, 9\).*\(n, 8\)"),
        (unit_vectors(2)[0], 5, r"\(8,\)"),
        (np.full((1, 8), np.nan, np.float32), 5, "not finite"),
        (np.full((1, 8), np.inf, np.float32), 5, "not finite"),
        (np.zeros((1, 8), np.float32), 5, "zero"),
        (np.ones((1, 8), np.int64), 5, "int64"),
        (unit_vectors(2), 0, "limit is 0"),
    ],
)
def test_search_refuses_what_it_cannot_compare(
    engine: Engine, queries: np.ndarray, limit: int, words: str
) -> None:
    index = engine.create()
    with pytest.raises(ConfigError, match=words):
        index.nearest(queries, limit)


@pytest.mark.parametrize(
    "bad",
    [
        Point(image_id(9), unit_vectors(1, 7)[0], {}),
        Point(image_id(9), unit_vectors(1), {}),
        Point(image_id(9), np.full(8, np.nan, np.float32), {}),
        Point(image_id(9), np.zeros(8, np.float32), {}),
        Point(image_id(9), unit_vectors(1)[0], {"x": float("inf")}),
        Point(image_id(9), unit_vectors(1)[0], {"path": "\udcff.png"}),
        Point(image_id(9), unit_vectors(1)[0], {"x": np.float32(1)}),
        Point("cat.png", unit_vectors(1)[0], {}),
        Point(image_id(9).upper(), unit_vectors(1)[0], {}),
    ],
)
def test_one_bad_point_and_none_is_written(engine: Engine, bad: Point) -> None:
    index = engine.create()
    with pytest.raises(ConfigError, match=bad.id):
        index.upsert([*make_points(unit_vectors(120)), bad])
    assert index.count() == 0


def test_upsert_replaces(engine: Engine) -> None:
    old, new = unit_vectors(2)
    index = engine.create()
    index.upsert([Point(image_id(0), old, {"path": "old.png", "gone": 1})])
    index.upsert([Point(image_id(0), new, {"path": "new.png"})])
    assert index.count() == 1
    (found,) = index.nearest(new[None], 1)
    assert found[0].score == pytest.approx(1, abs=float32_slack(1, roundings=DOT))
    assert found[0].payload == {"path": "new.png"}


def test_the_last_of_equal_ids_stands(engine: Engine) -> None:
    index = engine.create()
    first, last = unit_vectors(2)
    index.upsert([Point(image_id(0), first, {"n": 1}), Point(image_id(0), last, {"n": 2})])
    assert index.retrieve([image_id(0)]) == {image_id(0): {"n": 2}}
    found = index.nearest(last[None], 1)[0]
    assert found[0].score == pytest.approx(1, abs=float32_slack(1, roundings=DOT))


def test_empty_calls_do_nothing(engine: Engine) -> None:
    index = engine.create()
    index.upsert([])
    index.delete([])
    assert index.existing([]) == set()
    assert index.retrieve([]) == {}
    assert index.count() == 0


def test_an_update_writes_what_is_stored_and_nothing_else(engine: Engine) -> None:
    old, new, other = unit_vectors(3)
    index = engine.create()
    index.upsert([Point(image_id(0), old, {"path": "old.png", "gone": 1})])
    seen: list[Any] = []
    index.observe(seen.append)
    index.update([Point(image_id(n), new, {"path": "new.png"}) for n in range(2)])
    assert index.retrieve([image_id(0), image_id(1)]) == {image_id(0): {"path": "new.png"}}
    assert index.count() == 1
    assert index.vectors([image_id(0)])[image_id(0)] == pytest.approx(
        new, abs=float32_slack(1, roundings=DOT)
    )
    assert seen == [[image_id(0), image_id(1)]]
    index.update([Point(image_id(7), other, {})])
    index.update([])
    assert index.count() == 1


def test_existing(engine: Engine) -> None:
    index = engine.create()
    index.upsert(make_points(unit_vectors(120)))
    assert index.existing([image_id(n) for n in range(100, 130)]) == {
        image_id(n) for n in range(100, 120)
    }


def test_search_keeps_token_bytes_back(engine: Engine) -> None:
    index = engine.create()
    index.upsert(
        [
            *make_points(unit_vectors(2)),
            Point(image_id(2), unit_vectors(3)[2], {"_edje": {"tokens": "QUJD"}, "tokens": "mine"}),
        ]
    )
    (found,) = index.nearest(unit_vectors(1), 3)
    payloads = {c.image_id: c.payload for c in found}
    assert payloads == {
        image_id(0): {"path": "0.png", "_edje": {"record": 0}},
        image_id(1): {"path": "1.png", "_edje": {"record": 1}},
        image_id(2): {"_edje": {}, "tokens": "mine"},
    }


def test_retrieve_gives_whole_payloads(engine: Engine) -> None:
    index = engine.create()
    points = make_points(unit_vectors(120))
    index.upsert(points)
    wanted = [image_id(n) for n in (119, 3, 500, 3)]
    assert index.retrieve(wanted) == {
        image_id(119): points[119].payload,
        image_id(3): points[3].payload,
    }


def test_vectors_come_back_at_unit_length(engine: Engine) -> None:
    index = engine.create()
    vectors = unit_vectors(120)
    index.upsert(make_points(3 * vectors))
    back = index.vectors([image_id(n) for n in (119, 3, 500, 3)])
    assert back.keys() == {image_id(119), image_id(3)}
    for number in (119, 3):
        assert back[image_id(number)].dtype == np.float32
        np.testing.assert_allclose(
            back[image_id(number)], vectors[number], atol=float32_slack(1, roundings=DOT)
        )
    assert index.vectors([]) == {}


def test_payloads_keep_their_types(engine: Engine) -> None:
    payload = {
        "text": "naïve \u0000 猫",
        "whole": 3,
        "real": 2.0,
        "none": None,
        "yes": True,
        "list": [1, "two", {"three": []}],
        "a.b": {"": 1},
    }
    index = engine.create()
    index.upsert([Point(image_id(0), unit_vectors(1)[0], payload)])
    back = index.retrieve([image_id(0)])[image_id(0)]
    assert back == payload
    # gRPC does not keep the order of keys.
    assert {key: type(value) for key, value in back.items()} == {
        key: type(value) for key, value in payload.items()
    }
    assert index.nearest(unit_vectors(1), 1)[0][0].payload == payload


def test_large_payloads(engine: Engine) -> None:
    index = engine.create()
    tokens = "A" * 700_000
    index.upsert(
        [
            Point(image_id(n), vector, {"_edje": {"tokens": tokens, "record": n}})
            for n, vector in enumerate(unit_vectors(24))
        ]
    )
    assert index.count() == 24
    assert index.retrieve([image_id(23)])[image_id(23)]["_edje"]["tokens"] == tokens


def test_delete(engine: Engine) -> None:
    index = engine.create()
    index.upsert(make_points(unit_vectors(5)))
    index.delete([image_id(1), image_id(77), image_id(3)])
    assert index.count() == 3
    (found,) = index.nearest(unit_vectors(1), 10)
    assert {c.image_id for c in found} == {image_id(n) for n in (0, 2, 4)}
    index.close()
    assert engine.open().count() == 3


def test_close_twice_and_use_after(engine: Engine) -> None:
    index = engine.create()
    index.close()
    index.close()
    uses = [
        index.count,
        index.flush,
        index.optimize,
        lambda: index.upsert([]),
        lambda: index.nearest(unit_vectors(1), 1),
        lambda: index.existing([]),
        lambda: index.retrieve([]),
        lambda: index.delete([]),
    ]
    for use in uses:
        with pytest.raises(StoreError, match="closed; open it again"):
            use()


def test_threads_search_while_others_write(engine: Engine) -> None:
    index = engine.create(dim=16)
    index.upsert(make_points(unit_vectors(50, 16)))
    queries = unit_vectors(2, 16, seed=1)
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                for found in index.nearest(queries, 10):
                    assert [c.rank for c in found] == list(range(1, 11))
                    assert all("_edje" in c.payload for c in found)
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for start in range(100, 600, 50):
        index.upsert(make_points(unit_vectors(50, 16, seed=start), start))
        index.delete([image_id(start), image_id(start + 1)])
        index.flush()
    index.optimize()
    done.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert index.count() == 50 + 10 * 48


def test_engines_rank_alike(tmp_path: Path, memory: QdrantClient, stand_in: StandIn) -> None:
    vectors = unit_vectors(400, 64)
    vectors[200:220] = vectors[:20]  # twins: only their ids can order them
    queries = np.concatenate([unit_vectors(10, 64, seed=1), vectors[:5]])
    rankings: list[list[list[Candidate]]] = []
    for engine in (
        edge_engine(tmp_path),
        qdrant_engine(memory),
        qdrant_engine(stand_in.url),
    ):
        index = engine.create(dim=64)
        for start in range(0, 400, 150):
            index.upsert(make_points(vectors[start : start + 150], start))
        index.flush()
        index.optimize()
        rankings.append(index.nearest(queries, 50))
        engine.close()
    first, *others = rankings
    for other in others:
        for ours, theirs in zip(first, other, strict=True):
            assert [(c.image_id, c.rank, c.payload) for c in ours] == [
                (c.image_id, c.rank, c.payload) for c in theirs
            ]
            np.testing.assert_allclose(
                [c.score for c in ours],
                [c.score for c in theirs],
                atol=float32_slack(1, roundings=DOT),
            )


def test_every_write_is_reported(engine: Engine) -> None:
    index = engine.create()
    seen: list[Any] = []
    end = index.observe(seen.append)
    points = make_points(unit_vectors(4))
    ids = [point.id for point in points]
    index.upsert(points)
    index.set_payload({ids[1]: {"album": "x"}})
    index.remove_payload_keys(ids[:2], ["album"])
    index.delete(ids[:1])
    index.delete_matching({"album": "nowhere"})
    assert seen == [ids, ids[1:2], ids[:2], ids[:1], None]
    seen.clear()
    with pytest.raises(ConfigError):
        index.delete(["no id"])
    index.nearest(unit_vectors(1), 3)
    assert seen == []
    backend: Any = index._backend

    def fail(_: Any) -> None:
        raise StoreError("the disk is full")

    write, backend.write = backend.write, fail
    with pytest.raises(StoreError, match="full"):
        index.upsert(points)
    backend.write = write
    assert seen == [ids]  # some may have been written
    end()
    end()
    index.delete(ids)
    assert seen == [ids]
