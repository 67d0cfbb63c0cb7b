"""API keys, and nodes of a cluster that go away: the same on the stand-ins and on real servers.

A real server that wants keys is named by EDJE_QDRANT_KEYS_URL, with EDJE_QDRANT_WRITE_KEY and
EDJE_QDRANT_READ_KEY. Of a real cluster of two nodes, EDJE_QDRANT_CLUSTER_URL names one, and
EDJE_QDRANT_NODE_STOP and EDJE_QDRANT_NODE_START are commands that stop and start the other.
EDJE_QDRANT_KEYS_GRPC_PORT and EDJE_QDRANT_CLUSTER_GRPC_PORT name their ports of gRPC.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from grpc_stand_in import GrpcStandIn
from index_engines import FAST, image_id, make_points, unit_vectors
from index_stand_in import StandIn

from edje_qdrant.errors import EngineUnavailableError, KeyRefusedError
from edje_qdrant.index import (
    QdrantOptions,
    QdrantSettings,
    VectorIndex,
    create_on_server,
    open_on_server,
)

pytestmark = pytest.mark.filterwarnings("ignore:Api key is used with an insecure")

PLACES = [
    "rest",
    "grpc",
    pytest.param("server", marks=pytest.mark.qdrant_server),
    pytest.param("server grpc", marks=pytest.mark.qdrant_server),
]


@dataclass
class Guarded:
    """A server that wants a key.

    Attributes:
        url: Its address.
        options: How to reach it.
        write_key: May do everything.
        read_key: May read.
        name: Of the test's collection.
    """

    url: str
    options: QdrantOptions
    write_key: str
    read_key: str
    name: str

    def with_key(self, key: str | None) -> QdrantOptions:
        return dataclasses.replace(self.options, api_key=key)

    def create(self, key: str | None, name: str | None = None) -> VectorIndex:
        return create_on_server(self.url, name or self.name, 8, {"a": 1}, self.with_key(key))

    def open(self, key: str | None) -> VectorIndex:
        return open_on_server(self.url, self.name, self.with_key(key))


@dataclass
class Cluster:
    """A cluster of which one node can be stopped and started."""

    url: str
    options: QdrantOptions
    name: str
    stop: Callable[[], Any]
    start: Callable[[], Any]


def over(options: QdrantOptions, grpc_port: int | None) -> QdrantOptions:
    if grpc_port is None:
        return options
    return dataclasses.replace(options, prefer_grpc=True, grpc_port=grpc_port)


def named(kind: str, *names: str) -> list[str]:
    """Return what the variables EDJE_QDRANT_... hold; skip the test where one is missing."""
    wanted = [f"EDJE_QDRANT_{name}" for name in names]
    if missing := [each for each in wanted if not os.environ.get(each)]:
        pytest.skip(f"{', '.join(missing)} not set, for {kind}")
    return [os.environ[each] for each in wanted]


@pytest.fixture(params=PLACES)
def guarded(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    keys = {"write-key-123456": True, "read-key-123456": False}
    if request.param == "rest":
        with StandIn(keys=keys) as server:
            yield Guarded(server.url, FAST, *keys, "images")
        return
    if request.param == "grpc":
        with GrpcStandIn(keys=keys) as grpc_server:
            yield Guarded(grpc_server.url, over(FAST, grpc_server.port), *keys, "images")
        return
    url, write_key, read_key = named("keys", "KEYS_URL", "WRITE_KEY", "READ_KEY")
    port = int(*named("keys", "KEYS_GRPC_PORT")) if "grpc" in request.param else None
    name = f"edje-test-{uuid.uuid4().hex[:8]}"
    server_with_keys = Guarded(url, over(FAST, port), write_key, read_key, name)
    yield server_with_keys
    _delete(url, name, server_with_keys.with_key(write_key))


@pytest.fixture(params=PLACES)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    def ends(stand_in: StandIn) -> tuple[Callable[[], None], Callable[[], None]]:
        return (
            lambda: setattr(stand_in, "node_away", True),
            lambda: setattr(stand_in, "node_away", False),
        )

    if request.param == "rest":
        with StandIn() as server:
            yield Cluster(server.url, FAST, "images", *ends(server))
        return
    if request.param == "grpc":
        with GrpcStandIn() as grpc_server:
            options = over(FAST, grpc_server.port)
            yield Cluster(grpc_server.url, options, "images", *ends(grpc_server.rest))
        return
    url, stop, start = named("a cluster", "CLUSTER_URL", "NODE_STOP", "NODE_START")
    port = int(*named("a cluster", "CLUSTER_GRPC_PORT")) if "grpc" in request.param else None
    name = f"edje-test-{uuid.uuid4().hex[:8]}"
    options = over(FAST, port)
    yield Cluster(
        url, options, name,
        lambda: subprocess.run(shlex.split(stop), check=True, timeout=60),
        lambda: subprocess.run(shlex.split(start), check=True, timeout=60),
    )  # fmt: skip
    subprocess.run(shlex.split(start), check=False, timeout=60)  # also after a failed test
    _delete(url, name, options)


def _delete(url: str, name: str, options: QdrantOptions) -> None:
    index = open_on_server(url, name, options)
    with index.patient(120):
        backend: Any = index._backend
        backend._connection.call(name, backend._client.delete_collection, name)
    index.close()


WRITES: dict[str, Callable[[VectorIndex], object]] = {
    "upsert": lambda index: index.upsert(make_points(unit_vectors(2, seed=1))),
    "insert": lambda index: index.insert(make_points(unit_vectors(2, seed=1), start=9)),
    "update": lambda index: index.update(make_points(unit_vectors(2, seed=1))),
    "set_payload": lambda index: index.set_payload({image_id(0): {"n": 1}}),
    "remove_payload_keys": lambda index: index.remove_payload_keys([image_id(0)], ["path"]),
    "delete": lambda index: index.delete([image_id(0)]),
    "delete_matching": lambda index: index.delete_matching({"path": "0.png"}),
    "create_payload_index": lambda index: index.create_payload_index("path", "keyword"),
    "set_metadata": lambda index: index.set_metadata({"a": 2}),
}


def test_a_refused_key(guarded: Guarded) -> None:
    guarded.create(guarded.write_key).close()
    for key, sentence in ((None, "Must provide an API key"), ("wrong-key-123456", "Invalid API")):
        with pytest.raises(KeyRefusedError, match=sentence) as caught:
            guarded.open(key)
        assert f"that may read '{guarded.name}'" in str(caught.value)
        assert "write" not in str(caught.value)
        assert "wrong-key-123456" not in str(caught.value)
        assert caught.value.location.startswith(guarded.url.rstrip("/"))
        with pytest.raises(KeyRefusedError, match=sentence):
            guarded.create(key, f"{guarded.name}-2")


def test_a_key_that_may_only_read(guarded: Guarded) -> None:
    with_all = guarded.create(guarded.write_key)
    with_all.upsert(make_points(unit_vectors(5)))
    before = with_all.retrieve([image_id(n) for n in range(5)])
    reader = guarded.open(guarded.read_key)
    assert [hit.image_id for hit in reader.nearest(unit_vectors(5)[:1], 1)[0]] == [image_id(0)]
    assert reader.retrieve([image_id(n) for n in range(5)]) == before
    assert sum(len(page) for page in reader.scroll(batch_size=2)) == reader.count() == 5
    assert reader.count({"path": "3.png"}) == 1
    for write in WRITES.values():
        with pytest.raises(KeyRefusedError, match="access is required") as caught:
            write(reader)
        assert f"may write to '{guarded.name}' (searching needs only the right to read)" in str(
            caught.value
        )
        assert guarded.read_key not in str(caught.value)
    with pytest.raises(KeyRefusedError, match="access is required"):
        guarded.create(guarded.read_key, f"{guarded.name}-2")
    assert reader.retrieve([image_id(n) for n in range(5)]) == before
    assert with_all.reload_metadata() == {"a": 1}
    assert with_all.payload_indexes() == {}
    assert with_all.count() == 5
    for write in WRITES.values():
        write(with_all)
    reader.close()
    with_all.close()


def test_a_node_that_goes_away_and_comes_back(cluster: Cluster) -> None:
    points = make_points(unit_vectors(20))
    index = create_on_server(
        cluster.url, cluster.name, 8, {}, cluster.options, QdrantSettings(shards=2)
    )
    index.upsert(points)
    cluster.stop()
    for read in (
        index.count,
        lambda: index.nearest(unit_vectors(1), 3),
        lambda: [*index.scroll()],
        lambda: index.retrieve([point.id for point in points]),
    ):
        with pytest.raises(EngineUnavailableError, match=r"a node of the cluster .* is away") as no:
            read()
        assert "some of the replicas" not in str(no.value)
    for write in (
        lambda: index.upsert(points),
        lambda: index.update(points),
        lambda: index.set_payload({point.id: {"n": 1} for point in points}),
    ):
        with pytest.raises(EngineUnavailableError, match="may have been on some of the replicas"):
            write()
    cluster.start()
    with index.patient(120):
        assert index.count() == 20
        index.upsert(points)
        assert {*index.retrieve([point.id for point in points])} == {point.id for point in points}
    index.close()
