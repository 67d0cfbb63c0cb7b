from __future__ import annotations

import threading
from pathlib import Path

import grpc
import pytest
from grpc_stand_in import GrpcStandIn
from index_engines import Engine, make_points, unit_vectors
from index_stand_in import StandIn

from edje_qdrant.errors import (
    CollectionNotFoundError,
    EngineUnavailableError,
    KeyRefusedError,
    StoreError,
)
from edje_qdrant.index import (
    QdrantOptions,
    create_embedded,
    create_on_server,
    open_on_server,
)

PATIENT = QdrantOptions(timeout=120, retries=8, backoff=0.01)


@pytest.mark.parametrize("points", [False, True])
def test_an_index_that_answers(engine: Engine, points: bool) -> None:
    index = engine.create(metadata={"kept": 1})
    assert index.probe(points=points) == {"kept": 1}
    index.upsert(make_points(unit_vectors(3)))
    index.probe(points=points)
    index.close()
    with pytest.raises(StoreError, match="closed"):
        index.probe(points=points)


def test_it_is_one_request_that_is_not_repeated(stand_in: StandIn) -> None:
    index = create_on_server(stand_in.url, "images", 8, {}, PATIENT)
    stand_in.seen.clear()
    index.probe()
    assert stand_in.seen == ["GET /collections/images"]
    index.probe(points=True)
    assert stand_in.seen[1:] == ["GET /collections/images", "POST /collections/images/points/count"]
    stand_in.seen.clear()
    stand_in.failures.append((503, {}))
    with pytest.raises(EngineUnavailableError):
        index.probe()
    assert stand_in.seen == ["GET /collections/images"]
    stand_in.answers_left = 0
    with pytest.raises(EngineUnavailableError):
        index.probe()
    assert len(stand_in.seen) == 2
    stand_in.answers_left = None
    index.probe()
    stand_in.client.delete_collection("images")
    with pytest.raises(CollectionNotFoundError):
        index.probe()
    index.close()


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_a_key_that_is_refused() -> None:
    with StandIn(keys={"a-key": True}) as server:
        options = QdrantOptions(api_key="a-key", timeout=120)
        index = create_on_server(server.url, "images", 8, {}, options)
        index.probe(points=True)
        assert server.keys is not None
        server.keys = {"another-key": True}
        with pytest.raises(KeyRefusedError, match="key"):
            index.probe()
        index.close()


def test_over_grpc(grpc_stand_in: GrpcStandIn) -> None:
    client = grpc_stand_in.client(timeout=120)
    index = create_on_server(client, "images", 8, {}, PATIENT)
    grpc_stand_in.seen.clear()
    index.probe(points=True)
    assert grpc_stand_in.seen == ["Collections/Get", "Points/Count"]
    grpc_stand_in.failures.append((grpc.StatusCode.UNAVAILABLE, "connection refused", {}))
    with pytest.raises(EngineUnavailableError):
        index.probe()
    assert len(grpc_stand_in.seen) == 3
    index.close()
    client.close()


def test_a_second_connection_is_closed_with_the_index(stand_in: StandIn) -> None:
    create_on_server(stand_in.url, "images", 8, {}).close()
    index = open_on_server(stand_in.url, "images")
    index.probe()
    index.close()
    with pytest.raises(StoreError, match="closed"):
        index.probe()


def test_a_server_known_to_be_away_is_not_asked_again(stand_in: StandIn) -> None:
    options = QdrantOptions(timeout=120, retries=8, backoff=1000)
    index = create_on_server(stand_in.url, "images", 8, {}, options)
    away = threading.Event()
    index.give_up_when(away, away.set)
    stand_in.answers_left = 0
    stand_in.seen.clear()
    with pytest.raises(EngineUnavailableError, match="after 1 tries"):
        index.count()
    assert len(stand_in.seen) == 1
    away.clear()
    stand_in.answers_left = None
    assert index.count() == 0
    index.close()


def test_a_server_known_to_be_away_is_not_waited_for(stand_in: StandIn) -> None:
    options = QdrantOptions(timeout=120, retries=8, backoff=1000)
    index = create_on_server(stand_in.url, "images", 8, {}, options)
    away = threading.Event()
    index.give_up_when(away, lambda: None)
    stand_in.delay = 30
    threading.Timer(0.1, away.set).start()
    with pytest.raises(EngineUnavailableError):
        index.count()
    index.close()


def test_an_embedded_engine_has_nothing_to_wait_for(tmp_path: Path) -> None:
    index = create_embedded(tmp_path, 8, {})
    away = threading.Event()
    index.give_up_when(away, lambda: None)
    away.set()
    assert index.count() == 0
    index.close()
