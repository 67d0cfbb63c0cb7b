"""Servers and nodes that are away, limits and keys, over gRPC as over REST."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_stand_in import GrpcStandIn
from index_engines import FAST, image_id, make_points, unit_vectors

from edje_qdrant.errors import EngineUnavailableError, RateLimitedError
from edje_qdrant.index import QdrantOptions, VectorIndex, create_on_server


def options_of(server: GrpcStandIn, **more: Any) -> QdrantOptions:
    return dataclasses.replace(FAST, prefer_grpc=True, grpc_port=server.port, **more)


@pytest.fixture
def index(grpc_stand_in: GrpcStandIn) -> Iterator[VectorIndex]:
    index = create_on_server(
        grpc_stand_in.url, "images", 8, {}, options_of(grpc_stand_in, timeout=30)
    )
    index.upsert(make_points(unit_vectors(5)))
    grpc_stand_in.seen.clear()
    yield index
    grpc_stand_in.paused = False
    index.close()


def test_a_node_away_is_no_damage(grpc_stand_in: GrpcStandIn, index: VectorIndex) -> None:
    grpc_stand_in.rest.node_away = True
    for read in (index.count, lambda: index.nearest(unit_vectors(1), 3)):
        with pytest.raises(EngineUnavailableError, match=r"a node of the cluster .* is away"):
            read()
    assert len(grpc_stand_in.seen) == 2 * (FAST.retries + 1)
    with pytest.raises(EngineUnavailableError, match="may have been on some of the replicas"):
        index.delete([image_id(0)])
    grpc_stand_in.rest.node_away = False
    assert index.count() == 5


def test_a_cluster_without_quorum(grpc_stand_in: GrpcStandIn) -> None:
    grpc_stand_in.rest.no_quorum = True
    with pytest.raises(EngineUnavailableError, match="Waiting for consensus operation commit"):
        create_on_server(grpc_stand_in.url, "images", 8, {}, options_of(grpc_stand_in))


@pytest.mark.slow
def test_a_search_asks_a_paused_server_once(grpc_stand_in: GrpcStandIn, index: VectorIndex) -> None:
    object.__setattr__(index._backend._connection._options, "timeout", 1)
    grpc_stand_in.paused = True
    with pytest.raises(EngineUnavailableError, match="with no time left for more"):
        index.nearest(unit_vectors(1), 3)
    with pytest.raises(EngineUnavailableError, match="with no time left for more"):
        asyncio.run(index.nearest_async(unit_vectors(1), 3))
    assert len(grpc_stand_in.seen) <= 2


def test_a_rate_limit(grpc_stand_in: GrpcStandIn, index: VectorIndex) -> None:
    limited = (grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many reads", {"retry-after": "60"})
    for search in (
        lambda: index.nearest(unit_vectors(1), 3),
        lambda: asyncio.run(index.nearest_async(unit_vectors(1), 3)),
    ):
        grpc_stand_in.failures.extend([limited] * 5)
        with pytest.raises(RateLimitedError, match=r"Too many reads.*try again in 60 s") as caught:
            search()
        assert caught.value.retry_after == 60
        assert len(grpc_stand_in.failures) == 4
        grpc_stand_in.failures.clear()


def test_a_job_goes_on(
    grpc_stand_in: GrpcStandIn,
    index: VectorIndex,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("edje_qdrant.index.qdrant.patience._TOLD_AFTER", 0.0)
    monkeypatch.setattr("edje_qdrant.index.qdrant.connection._LONGEST_PAUSE", 0.02)
    away = (grpc.StatusCode.UNAVAILABLE, "connection refused", {})
    grpc_stand_in.failures.extend([away] * 4 * FAST.retries)
    with index.patient(60):
        assert index.count() == 5
    waiting, going_on = capsys.readouterr().err.splitlines()
    assert f"(gRPC: port {grpc_stand_in.port}) does not answer (connection refused)" in waiting
    assert going_on.endswith("going on")
