"""Requests stay within the limits of a collection's strict mode, over REST and over gRPC."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from grpc_stand_in import GrpcStandIn
from index_engines import FAST, Engine, image_id, make_points, qdrant_engine, unit_vectors
from index_stand_in import StandIn
from qdrant_client import QdrantClient, models

from edje_qdrant.attach.points import AttachablePoints
from edje_qdrant.errors import ConfigError
from edje_qdrant.index import QdrantSettings, VectorIndex, create_on_server
from edje_qdrant.types import Candidates, Point

#: What managed servers set, and more, below what the package would use.
LIMITS: dict[str, Any] = {
    "max_query_limit": 20,
    "max_timeout": 5,
    "search_max_hnsw_ef": 128,
    "search_max_oversampling": 1.5,
    "search_allow_exact": False,
    "search_max_batchsize": 4,
    "upsert_max_batchsize": 8,
    "filter_max_conditions": 5,
    "condition_max_size": 10,
}


class Strict:
    """A server with a collection of 60 images, reached by one protocol."""

    def __init__(self, server: GrpcStandIn, location: str | QdrantClient) -> None:
        self.server, self.rest, self.location = server, server.rest, location
        self.seen = server.rest.seen if isinstance(location, str) else server.seen
        quantized = QdrantSettings(quantization="int8")
        made = create_on_server(location, "images", 8, {}, FAST, quantized)
        made.upsert(points(60))
        made.close()
        self.engine = qdrant_engine(location)

    def limit(self, **limits: Any) -> None:
        """Set limits of the strict mode, as another user of the server might."""
        config = {"strict_mode_config": {"enabled": True, **limits}}
        self.rest.answer("PATCH", ["collections", "images"], config)

    def asked(self) -> list[str]:
        """Return what was asked about points."""
        return [each for each in self.seen if "oints" in each]


def points(count: int) -> list[Point]:
    made = make_points(unit_vectors(count))
    return [Point(p.id, p.vector, {**p.payload, "n": n % 2}) for n, p in enumerate(made)]


@pytest.fixture(params=["REST", "gRPC"])
def strict(request: pytest.FixtureRequest, grpc_stand_in: GrpcStandIn) -> Iterator[Strict]:
    client = grpc_stand_in.client(timeout=120)
    made = Strict(grpc_stand_in, client if request.param == "gRPC" else grpc_stand_in.url)
    yield made
    made.engine.close()
    client.close()


def names(hits: Candidates) -> list[str]:
    return [hit.image_id for hit in hits]


def everything(index: VectorIndex) -> list[Any]:
    """Use an index in every way; return what was found."""
    queries, odd = unit_vectors(9, seed=1), {"n": 1}
    more = [Point(image_id(100 + n), v, {"n": 7}) for n, v in enumerate(unit_vectors(30, seed=2))]
    index.upsert(more)
    index.set_payload({p.id: {"seen": True} for p in more})
    index.remove_payload_keys([p.id for p in more], ["n"])
    found: list[Any] = [
        [names(hits) for hits in index.nearest(queries, 10)],
        [names(hits) for hits in index.nearest(queries, 10, filter=odd, timeout=60)],
        [names(hits) for hits in asyncio.run(index.nearest_async(queries, 20, timeout=60))],
        names(index.recommend([image_id(100)], [image_id(101)], 5)),
        names(index.recommend([image_id(100)], [], 5, strategy="best_score")),
        index.count(),
        index.count(odd),
        [p.id for page in index.scroll(vectors=True) for p in page],
        [p.payload for page in index.scroll(filter={"seen": True}) for p in page],
        sorted(index.existing([p.id for p in more])),
    ]
    index.delete_matching({"seen": True})
    index.delete([image_id(3)])
    return [*found, index.count()]


def test_everything_works_and_finds_the_same(strict: Strict) -> None:
    unlimited = everything(strict.engine.create("other"))  # empty but for what is added
    index = strict.engine.open()
    index.delete([p.id for p in points(60)])
    strict.limit(**LIMITS)
    assert everything(strict.engine.open()) == unlimited
    index = strict.engine.open()
    index.upsert(points(60))
    assert index.count() == 60
    (hits,) = index.nearest(unit_vectors(1, seed=1), 20)
    assert len(hits) == 20
    params = strict.rest.params[-1]
    assert params.hnsw_ef == 128
    assert params.quantization == models.QuantizationSearchParams(rescore=True, oversampling=1.5)


def test_limits_that_are_set_while_it_is_open_are_noticed(strict: Strict) -> None:
    index, closed = strict.engine.open(), strict.engine.open()
    queries = unit_vectors(9, seed=1)
    before = [names(hits) for hits in index.nearest(queries, 10)]
    strict.limit(**LIMITS)
    assert [names(hits) for hits in index.nearest(queries, 10)] == before
    hits = asyncio.run(closed.nearest_async(queries, 10))
    assert [names(each) for each in hits] == before
    for use in (
        lambda index: index.upsert(points(60)),
        lambda index: index.set_payload({p.id: {"seen": 1} for p in points(60)}),
        lambda index: index.remove_payload_keys([p.id for p in points(60)], ["seen"]),
        lambda index: index.count(),
        lambda index: [*index.scroll(batch_size=30)],
    ):
        strict.limit(enabled=False)
        opened = strict.engine.open()
        strict.limit(**LIMITS)
        use(opened)
        strict.seen.clear()
        use(opened)  # remembered
        assert not [each for each in strict.seen if each.endswith(("/images", "Get"))
                    and "oints" not in each]  # fmt: skip


def test_more_candidates_than_allowed_are_refused_before_anything_is_sent(strict: Strict) -> None:
    strict.limit(max_query_limit=20)
    index = strict.engine.open()
    strict.seen.clear()
    query = unit_vectors(1)
    uses: list[Callable[[], Any]] = [
        lambda: index.nearest(query, 21),
        lambda: asyncio.run(index.nearest_async(query, 21)),
    ]
    for use in uses:
        with pytest.raises(
            ConfigError, match=r"21 candidates.*'images'.*allows 20 .*ask for 20 or fewer"
        ):
            use()
    assert not strict.asked()
    strict.limit(max_query_limit=21)
    for use in uses:
        assert len(use()[0]) == 21


def test_larger_filters_than_allowed_are_refused_before_anything_is_sent(strict: Strict) -> None:
    strict.limit(filter_max_conditions=2, condition_max_size=3)
    index = strict.engine.open()
    strict.seen.clear()
    many = {"a": 1, "b": 1, "c": 1}
    inner = models.Filter(must=[models.FieldCondition(key="x", match=models.MatchValue(value=1))])
    nested = models.NestedCondition(nested=models.Nested(key="boxes", filter=inner))
    deep = models.Filter(should=[models.Filter(must_not=[nested, nested, nested])])
    ids = models.Filter(must=[models.HasIdCondition(has_id=[image_id(n) for n in range(4)])])
    for chosen, words in (
        (many, r"filter comes to 3 conditions.*allows 2 \(filter_max_conditions\)"),
        (deep, "filter comes to 3 conditions"),
        ({"n": [1, 2, 3, 4]}, r"must\[0\] lists 4 values.*allows 3 .*\(condition_max_size\)"),
        (ids, r"filter\.must\[0\] lists 4 values"),
    ):
        for use in (index.count, index.delete_matching, lambda f: index.nearest(
            unit_vectors(1), 1, filter=f)):  # fmt: skip
            with pytest.raises(ConfigError, match=words):
                use(chosen)
    assert not strict.asked()
    assert index.count({"n": [0, 1, 2]}) == 60
    strict.limit(filter_max_conditions=3, condition_max_size=4)
    assert index.count(many) == 0
    assert index.count(ids) == 4


def test_what_limits_cost_is_said_once(strict: Strict, caplog: pytest.LogCaptureFixture) -> None:
    index = strict.engine.open()
    index.nearest(unit_vectors(1), 5, filter={"n": 1})
    assert not caplog.records
    strict.limit(**LIMITS)
    index = strict.engine.open()
    for _ in range(3):
        index.nearest(unit_vectors(1), 5)
        index.nearest(unit_vectors(1), 5, filter={"n": 1})
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    assert all("'images'" in line and "\n" not in line for line in said)
    for line, words in zip(
        said,
        (
            "(search_max_hnsw_ef): a search of the graph keeps 128 candidates in place of 512",
            "(search_max_oversampling): a search rescores 1.5 candidates for each one wanted in",
            "(search_allow_exact): a search by a filter without a payload index follows the graph",
        ),
        strict=True,
    ):
        assert words in line


def test_limits_above_what_is_used_change_nothing(
    strict: Strict, caplog: pytest.LogCaptureFixture
) -> None:
    strict.limit(
        max_query_limit=1000, search_max_hnsw_ef=512, search_max_oversampling=2.0,
        search_max_batchsize=100, upsert_max_batchsize=100, max_timeout=60,
    )  # fmt: skip
    index = strict.engine.open()
    strict.seen.clear()
    index.nearest(unit_vectors(20), 50, timeout=9)
    index.upsert(points(50))
    assert len(strict.asked()) == 2
    assert strict.rest.params[-1].hnsw_ef == 512
    assert not caplog.records


def test_attached_collections_keep_to_the_limits(strict: Strict) -> None:
    params = models.VectorParams(size=8, distance=models.Distance.COSINE)
    strict.rest.client.create_collection("theirs", params)
    made = [models.PointStruct(id=n, vector=[1.0] * 8, payload={"path": "x"}) for n in range(45)]
    strict.rest.client.upsert("theirs", made)
    config = {"strict_mode_config": {"enabled": True, **LIMITS, "max_query_limit": 10}}
    strict.rest.answer("PATCH", ["collections", "theirs"], config)
    attached = AttachablePoints(strict.location, "theirs", "path", FAST)
    assert attached.count() == 45
    assert attached.some_fields() == ["path"]
    assert sum(len(page) for page in attached.scroll()) == 45
    attached.mark({n: {"record": n} for n in range(45)})
    assert len([p for page in attached.scroll() for p in page if p.reference]) == 45
    attached.close()


def test_refusals_for_other_reasons_are_not_asked_about_again(stand_in: StandIn) -> None:
    engine = qdrant_engine(stand_in.url)
    index = engine.create()
    stand_in.seen.clear()
    stand_in.failures.append((400, {}))
    with pytest.raises(ConfigError):
        index.count()
    assert len(stand_in.seen) == 1
    engine.close()


@pytest.mark.qdrant_server
@pytest.mark.parametrize("protocol", ["server", "server_grpc"])
def test_a_real_server_in_strict_mode_refuses_nothing(
    request: pytest.FixtureRequest, protocol: str
) -> None:
    engine: Engine = request.getfixturevalue(f"{protocol}_engine")
    index = engine.create("images")
    client = QdrantClient(url=os.environ["EDJE_QDRANT_URL"], check_compatibility=False)
    (name,) = (
        c.name for c in client.get_collections().collections if c.name.startswith("edje-test-")
    )
    unlimited = everything(engine.create("other"))
    strict_mode = models.StrictModeConfig(
        enabled=True,
        unindexed_filtering_retrieve=False,
        unindexed_filtering_update=False,
        **LIMITS,
    )
    index.create_payload_index("n", "integer")
    index.create_payload_index("seen", "bool")
    client.update_collection(name, strict_mode_config=strict_mode)
    client.close()
    assert everything(engine.open("images")) == unlimited
    with pytest.raises(ConfigError, match="ask for 20 or fewer"):
        index.nearest(unit_vectors(1), 21)
    with pytest.raises(ConfigError, match=r"create_payload_index\('b', 'integer'\)"):
        index.count({"b": 1})
    index.upsert(points(60))
    (hits,) = index.nearest(np.ascontiguousarray(unit_vectors(1)), 20)
    assert len(hits) == 20
