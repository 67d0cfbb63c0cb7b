from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpc_stand_in import GrpcStandIn
from index_engines import Engine, edge_engine, faiss_engine, qdrant_engine
from index_stand_in import StandIn
from qdrant_client import QdrantClient

from edje_qdrant.index import create_on_server, open_on_server


@pytest.fixture
def memory() -> Iterator[QdrantClient]:
    client = QdrantClient(":memory:")
    yield client
    client.close()


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with StandIn() as server:
        yield server


@pytest.fixture
def grpc_stand_in() -> Iterator[GrpcStandIn]:
    with GrpcStandIn() as server:
        yield server


@pytest.fixture(
    params=[
        "edge",
        "faiss",
        "memory",
        "http",
        # test_strict_mode.py and test_versions.py use an index in every way over gRPC.
        pytest.param("grpc", marks=pytest.mark.slow),
        pytest.param("server", marks=pytest.mark.qdrant_server),
        pytest.param("server_grpc", marks=pytest.mark.qdrant_server),
    ]
)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "edge":
        engine = edge_engine(tmp_path)
    elif request.param == "faiss":
        engine = faiss_engine(tmp_path)
    elif request.param == "memory":
        engine = qdrant_engine(request.getfixturevalue("memory"))
    elif request.param == "http":
        engine = qdrant_engine(request.getfixturevalue("stand_in").url)
    elif request.param == "grpc":
        client = request.getfixturevalue("grpc_stand_in").client(timeout=120)
        engine = qdrant_engine(client)
        engine.closing(client.close)
    else:
        engine = request.getfixturevalue(f"{request.param}_engine")
    yield engine
    engine.close()


@pytest.fixture
def server_engine() -> Iterator[Engine]:
    """A server over REST, at the address in EDJE_QDRANT_URL."""
    url = os.environ.get("EDJE_QDRANT_URL")
    if not url:
        pytest.skip("EDJE_QDRANT_URL names no server")
    yield from _server_engine(url, QdrantClient(url=url, check_compatibility=False))


@pytest.fixture
def server_grpc_engine() -> Iterator[Engine]:
    """The same server over gRPC, at the port in EDJE_QDRANT_GRPC_PORT."""
    url, port = (os.environ.get(f"EDJE_QDRANT_{name}") for name in ("URL", "GRPC_PORT"))
    if not url or not port:
        pytest.skip("EDJE_QDRANT_URL and EDJE_QDRANT_GRPC_PORT name no server")
    client = QdrantClient(url=url, grpc_port=int(port), prefer_grpc=True, check_compatibility=False)
    yield from _server_engine(client, client)


def _server_engine(location: str | QdrantClient, client: QdrantClient) -> Iterator[Engine]:
    prefix = f"edje-test-{uuid.uuid4().hex[:8]}-"
    yield Engine(
        lambda name, dim, metadata: create_on_server(location, prefix + name, dim, metadata),
        lambda name: open_on_server(location, prefix + name),
    )
    for collection in client.get_collections().collections:
        if collection.name.startswith(prefix):
            client.delete_collection(collection.name)
    client.close()
