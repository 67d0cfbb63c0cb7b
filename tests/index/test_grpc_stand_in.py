"""What the stand-in over gRPC answers, told to fail included."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_stand_in import GrpcStandIn
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse

SLICE = models.Filter(must=[models.SliceCondition(slice=models.Slice(total=4, index=0))])


@pytest.fixture
def client(grpc_stand_in: GrpcStandIn) -> Iterator[QdrantClient]:
    client = grpc_stand_in.client()
    client.create_collection(
        "images",
        vectors_config=models.VectorParams(size=2, distance=models.Distance.COSINE),
        hnsw_config=models.HnswConfigDiff(m=32),
        metadata={"made": {"by": "a test", "list": [1, None, 0.5]}},
    )
    points = [models.PointStruct(id=n, vector=[1, n], payload={"n": n}) for n in range(20)]
    client.upsert("images", points, wait=True)
    yield client
    client.close()


def code_of(function: Callable[..., Any], *args: Any, **more: Any) -> grpc.StatusCode:
    """Call what must fail; return how."""
    with pytest.raises(grpc.RpcError) as caught:
        function(*args, **more)
    code: grpc.StatusCode = caught.value.code()
    return code


def test_a_collection_is_described_as_it_was_made(client: QdrantClient) -> None:
    config = client.get_collection("images").config
    assert config.hnsw_config.m == 32
    assert config.metadata == {"made": {"by": "a test", "list": [1, None, 0.5]}}
    assert config.strict_mode_config is None
    assert client.info().version == "1.19.0"


def test_an_old_server_drops_a_new_condition(
    client: QdrantClient, grpc_stand_in: GrpcStandIn
) -> None:
    assert client.count("images", SLICE).count < 20
    grpc_stand_in.rest.version = "1.18.3"
    assert client.count("images", SLICE).count == 20
    client.delete("images", models.FilterSelector(filter=SLICE))
    assert client.count("images").count == 0


def test_a_match_that_it_does_not_know_is_refused(
    client: QdrantClient, grpc_stand_in: GrpcStandIn
) -> None:
    grpc_stand_in.rest.version = "1.18.3"
    prefix = models.FieldCondition(key="n", match=models.MatchPrefix(prefix="a"))
    code = code_of(client.count, "images", models.Filter(must=[prefix]))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_it_fails_as_told(client: QdrantClient, grpc_stand_in: GrpcStandIn) -> None:
    away = (grpc.StatusCode.UNAVAILABLE, "connection refused", {})
    limited = (grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many", {"retry-after": "7"})
    grpc_stand_in.failures += [away, limited]
    assert code_of(client.count, "images") is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(ResourceExhaustedResponse) as caught:
        client.count("images")
    assert caught.value.retry_after_s == 7
    assert client.count("images").count == 20
    assert code_of(client.count, "other") is grpc.StatusCode.NOT_FOUND


def test_strict_mode_and_aliases_hold(client: QdrantClient) -> None:
    client.update_collection("images", strict_mode_config=_STRICT)
    limits = client.get_collection("images").config.strict_mode_config
    assert limits is not None
    assert limits.search_max_hnsw_ef == 128
    params = models.SearchParams(hnsw_ef=512)
    code = code_of(client.query_points, "images", [1.0, 0.0], search_params=params)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    create = models.CreateAlias(collection_name="images", alias_name="live")
    client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])
    assert client.count("live").count == 20
    assert [a.alias_name for a in client.get_collection_aliases("images").aliases] == ["live"]


_STRICT = models.StrictModeConfig(enabled=True, search_max_hnsw_ef=128)


def test_keys_are_checked() -> None:
    with GrpcStandIn(keys={"read-key": False}) as server:
        for key, code in (
            ("no-key", grpc.StatusCode.UNAUTHENTICATED),
            ("read-key", grpc.StatusCode.PERMISSION_DENIED),
        ):
            client = server.client(api_key=key)
            assert code_of(client.delete_collection, "images") is code
            assert server.metadata[-1]["api-key"] == key
            client.close()


def test_what_a_connection_accepts_is_seen(
    client: QdrantClient, grpc_stand_in: GrpcStandIn
) -> None:
    assert grpc_stand_in.encodings == ["identity, deflate, gzip"]
    options = {"grpc.compression_enabled_algorithms_bitset": 1}
    plain = grpc_stand_in.client(grpc_options=options)
    plain.info()
    plain.close()
    assert grpc_stand_in.encodings[1:] == ["identity"]
    assert grpc_stand_in.seen[-2:] == ["Points/Upsert", "Qdrant/HealthCheck"]


def test_it_can_be_paused(client: QdrantClient, grpc_stand_in: GrpcStandIn) -> None:
    grpc_stand_in.paused = True
    with ThreadPoolExecutor(1) as pool:
        counted = pool.submit(client.count, "images")
        while grpc_stand_in.seen[-1] != "Points/Count":
            time.sleep(0.001)
        assert not counted.done()
        grpc_stand_in.paused = False
        assert counted.result().count == 20
