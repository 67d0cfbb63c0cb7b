"""Searches among the points that a filter lets through."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from index_engines import Engine, edge_engine, image_id, qdrant_engine, unit_vectors
from index_stand_in import StandIn
from numpy.typing import NDArray
from qdrant_client import models

from edje_qdrant.errors import ConfigError
from edje_qdrant.index import Filter, VectorIndex, hnsw
from edje_qdrant.types import Point


def fill(index: VectorIndex, vectors: NDArray[np.float32]) -> None:
    index.upsert(
        [
            Point(image_id(n), vector, {"tag": n * 7 % 100, "album": str(n % 3), "_edje": {}})
            for n, vector in enumerate(vectors)
        ]
    )


def equal(tag: int) -> models.Filter:
    return models.Filter(
        must=[models.FieldCondition(key="tag", match=models.MatchValue(value=tag))]
    )


def below(tag: int) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key="tag", range=models.Range(lt=tag))])


def check_top(
    index: VectorIndex,
    queries: NDArray[np.float32],
    vectors: NDArray[np.float32],
    among: list[int],
    chosen: Filter,
    limit: int,
) -> float:
    """Return which part of the true top was found, and that nothing else was."""
    allowed = {image_id(n) for n in among}
    hits = 0
    for found, query in zip(index.nearest(queries, limit, filter=chosen), queries, strict=True):
        cosines = vectors[among] @ query
        best = {image_id(among[n]) for n in np.argsort(-cosines)[:limit]}
        assert len(found) == len(best)
        assert {c.image_id for c in found} <= allowed
        assert [c.rank for c in found] == [*range(1, len(found) + 1)]
        hits += len(best & {c.image_id for c in found})
    return hits / (len(queries) * min(limit, len(among)))


def test_the_top_among_what_a_filter_lets_through(engine: Engine) -> None:
    vectors, queries = unit_vectors(300, 16), unit_vectors(5, 16, seed=1)
    index = engine.create(dim=16)
    fill(index, vectors)
    cases: list[tuple[Filter, list[int]]] = [
        ({"tag": 0}, [n for n in range(300) if n * 7 % 100 == 0]),
        (equal(0), [n for n in range(300) if n * 7 % 100 == 0]),
        (
            {"tag": [1, 2], "album": "1"},
            [n for n in range(300) if n * 7 % 100 in (1, 2) and n % 3 == 1],
        ),
        (below(90), [n for n in range(300) if n * 7 % 100 < 90]),
        ({}, [*range(300)]),
        (models.Filter(), [*range(300)]),
    ]
    for chosen, among in cases:
        assert check_top(index, queries, vectors, among, chosen, 10) == 1, chosen


def test_a_filter_that_lets_nothing_through(engine: Engine) -> None:
    index = engine.create()
    assert index.nearest(unit_vectors(2), 5, filter={"tag": 1}) == [[], []]
    fill(index, unit_vectors(20))
    assert index.nearest(unit_vectors(2), 5, filter={"tag": "none"}) == [[], []]
    assert index.nearest(unit_vectors(0), 5, filter={"tag": 1}) == []


def test_token_bytes_stay_out_of_filtered_searches(engine: Engine) -> None:
    index = engine.create()
    vector = unit_vectors(1)
    index.upsert([Point(image_id(0), vector[0], {"tag": 1, "_edje": {"record": 7, "tokens": "Q"}})])
    ((found,),) = index.nearest(vector, 5, filter={"tag": 1})
    assert found.payload == {"tag": 1, "_edje": {"record": 7}}


def test_a_bad_filter_is_refused_before_the_search(engine: Engine) -> None:
    index = engine.create()
    for bad in ({"_edje": 1}, {"tag": 1.5}, equal(2**63), "tag = 1"):
        with pytest.raises(ConfigError):
            index.nearest(unit_vectors(1), 5, filter=bad)  # type: ignore[arg-type]


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Engine]:
    engine = edge_engine(tmp_path)
    yield engine
    engine.close()


@pytest.mark.parametrize("indexed", ["never", "before", "after"])
def test_a_graph_loses_nothing_to_a_filter(
    edge: Engine, monkeypatch: pytest.MonkeyPatch, indexed: str
) -> None:
    """With a graph at any size, as if the collection were a thousand times as large."""
    monkeypatch.setattr(hnsw, "SCAN_KILOBYTES", 1)
    count, dim, limit = 4000, 32, 30
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((50, dim))
    vectors = centers[rng.integers(0, 50, count)] + 0.7 * rng.standard_normal((count, dim))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    queries = unit_vectors(10, dim, seed=1)
    index = edge.create(dim=dim)
    if indexed == "before":
        index.create_payload_index("tag", "integer")
    fill(index, vectors)
    index.optimize()
    assert index._backend._engine.info().indexed_vectors_count == count  # type: ignore[attr-defined]
    if indexed == "after":
        index.create_payload_index("tag", "integer")

    def part(chosen: Filter, most: int) -> float:
        among = [n for n in range(count) if n * 7 % 100 < most]
        return check_top(index, queries, vectors, among, chosen, limit)

    assert part({"tag": 0}, 1) == 1
    assert part(equal(0), 1) == 1
    assert part(below(10), 10) == 1
    assert part(below(50), 50) == 1
    assert part(below(90), 90) > 0.99
    assert part({}, 100) > 0.99
    if indexed != "before":  # then the graph has links for the field
        monkeypatch.setattr(
            "edje_qdrant.index.hnsw.reach_of", lambda matching, total: hnsw.Reach.ALL
        )
        lists = index.nearest(queries, limit, filter={"tag": 0})
        assert sum(map(len, lists)) < 0.2 * limit * len(queries)  # what a bare walk would find


def test_how_a_server_is_asked(stand_in: StandIn) -> None:
    engine = qdrant_engine(stand_in.url)
    index = engine.create()
    fill(index, unit_vectors(100))
    index.create_payload_index("tag", "integer")
    index.create_payload_index("place", "keyword")
    empty = models.IsEmptyCondition(is_empty=models.PayloadField(key="tag"))
    place = models.FieldCondition(
        key="place", geo_radius=models.GeoRadius(center=models.GeoPoint(lon=0, lat=0), radius=1)
    )
    several = models.Filter(must=[below(50), empty], must_not=[models.HasIdCondition(has_id=[])])
    walked: list[Filter] = [{"tag": 0}, {"tag": [1, 2]}, below(50), several]
    scanned: list[Filter] = [
        {"album": "1"},
        {"tag": 0, "album": "1"},
        {"tag": "0"},  # an index of whole numbers does not count texts
        models.Filter(must=[place]),
        models.Filter(
            must=[models.FieldCondition(key="tag", values_count=models.ValuesCount(gt=1))]
        ),
    ]
    index.nearest(unit_vectors(1), 5)
    for chosen in (*walked, *scanned):
        index.nearest(unit_vectors(1), 5, filter=chosen)
    none, *asked = stand_in.params
    assert {each.hnsw_ef for each in stand_in.params} == {512}
    assert (none.exact, none.acorn) == (False, None)
    acorn = models.AcornSearchParams(enable=True, max_selectivity=1.0)
    assert [(each.exact, each.acorn) for each in asked] == (
        [(False, acorn)] * len(walked) + [(True, None)] * len(scanned)
    )
    engine.close()


@pytest.mark.parametrize("filter", [None, {"tag": 1}, {"album": "1"}, below(50)])
@pytest.mark.parametrize("in_loop", [False, True])
def test_a_search_is_one_request(stand_in: StandIn, filter: Filter | None, in_loop: bool) -> None:
    engine = qdrant_engine(stand_in.url)
    fill(engine.create(), unit_vectors(100))
    engine.opened[0].create_payload_index("tag", "integer")
    index = engine.open()
    stand_in.seen.clear()
    for _ in range(2):
        if in_loop:
            asyncio.run(index.nearest_async(unit_vectors(2), 5, filter=filter))
        else:
            index.nearest(unit_vectors(2), 5, filter=filter)
    assert stand_in.seen == ["POST /collections/images/points/query/batch"] * 2
    engine.close()


def test_an_index_made_by_another_process_is_noticed(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = qdrant_engine(stand_in.url)
    fill(engine.create(), unit_vectors(100))
    index = engine.open()
    index.nearest(unit_vectors(1), 5, filter={"tag": 1})
    engine.opened[0].create_payload_index("tag", "integer")
    later = time.monotonic() + 61
    monkeypatch.setattr("edje_qdrant.index.qdrant.backend.time.monotonic", lambda: later)
    index.nearest(unit_vectors(1), 5, filter={"tag": 1})
    asyncio.run(index.nearest_async(unit_vectors(1), 5, filter={"tag": 1}))
    assert [asked.exact for asked in stand_in.params] == [True, False, False]
    engine.close()


@pytest.mark.parametrize("most", [5, 100, 900])
def test_the_engine_of_servers_loses_nothing_where_the_field_has_an_index(
    edge: Engine, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Edge, told how to search as servers are."""
    monkeypatch.setattr(hnsw, "SCAN_KILOBYTES", 1)
    monkeypatch.setattr(hnsw, "reach_of", lambda matching, total: hnsw.Reach.MOST)
    count, dim = 2000, 32
    rng = np.random.default_rng(0)
    vectors = unit_vectors(50, dim)[rng.integers(0, 50, count)]
    vectors = vectors + 0.1 * rng.standard_normal((count, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    tags = rng.permutation(count) * 1000 // count
    index = edge.create(dim=dim)
    index.create_payload_index("tag", "integer")
    index.upsert(
        [
            Point(image_id(n), vector, {"tag": int(tags[n]), "_edje": {}})
            for n, vector in enumerate(vectors)
        ]
    )
    index.optimize()
    among = np.flatnonzero(tags < most).tolist()
    queries = unit_vectors(10, dim, seed=1)
    assert check_top(index, queries, vectors, among, below(most), 30) > 0.99
