"""How a server is told to keep a collection."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from grpc_stand_in import GrpcStandIn
from index_engines import FAST, Engine, image_id, make_points, unit_vectors
from index_stand_in import StandIn
from qdrant_client import QdrantClient, models

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError
from edje_qdrant.image_to_text.caption_collection import CaptionCollection
from edje_qdrant.index import QdrantSettings, create_on_server, open_on_server
from edje_qdrant.index.qdrant.settings import oversampling_of
from edje_qdrant.model import EDJEModel

#: What a collection is made with when nothing is asked for.
PLAIN = {
    "vectors": {"size": 8, "distance": "Cosine"},
    "hnsw_config": {"m": 32, "ef_construct": 200, "full_scan_threshold": 100_000},
    "optimizers_config": {"indexing_threshold": 100_000},
    "metadata": {"edje_qdrant": {}},
}

ALL = QdrantSettings(
    shards=6,
    replicas=3,
    write_consistency=2,
    payload_on_disk=True,
    vectors_on_disk=True,
    quantization="int8",
    quantized_in_memory=True,
)


PLACED = QdrantSettings(
    vectors_memory="cold",
    payload_memory="cached",
    graph_memory="pinned",
    quantization="int8",
    quantized_memory="pinned",
)


def given(body: dict[str, Any]) -> Any:
    """Leave out of a request what says nothing."""
    if not isinstance(body, dict):
        return body
    return {key: given(value) for key, value in body.items() if value is not None}


@pytest.mark.parametrize("settings", [None, QdrantSettings()])
def test_without_settings_the_request_is_the_plain_one(
    stand_in: StandIn, settings: QdrantSettings | None
) -> None:
    index = create_on_server(stand_in.url, "images", 8, {}, FAST, settings)
    assert given(stand_in.created["images"]) == PLAIN
    index.upsert(make_points(unit_vectors(5)))
    index.nearest(unit_vectors(1), 3)
    assert [params.quantization for params in stand_in.params] == [None]
    index.close()


def test_the_request_holds_just_what_is_set(stand_in: StandIn) -> None:
    create_on_server(stand_in.url, "images", 8, {}, FAST, ALL).close()
    assert given(stand_in.created["images"]) == {
        **PLAIN,
        "vectors": {"size": 8, "distance": "Cosine", "on_disk": True},
        "shard_number": 6,
        "replication_factor": 3,
        "write_consistency_factor": 2,
        "on_disk_payload": True,
        "quantization_config": {"scalar": {"type": "int8", "always_ram": True}},
    }
    create_on_server(
        stand_in.url, "more", 8, {}, FAST, QdrantSettings(shards=2, payload_on_disk=False)
    ).close()
    asked = {**PLAIN, "shard_number": 2, "on_disk_payload": False}
    assert given(stand_in.created["more"]) == asked


def test_parts_are_placed_in_memory(stand_in: StandIn) -> None:
    index = create_on_server(stand_in.url, "images", 8, {}, FAST, PLACED)
    assert given(stand_in.created["images"]) == {
        **PLAIN,
        "vectors": {"size": 8, "distance": "Cosine", "memory": "cold"},
        "hnsw_config": {**PLAIN["hnsw_config"], "memory": "pinned"},
        "payload": {"memory": "cached"},
        "quantization_config": {"scalar": {"type": "int8", "memory": "pinned"}},
    }
    index.upsert(make_points(unit_vectors(5)))
    assert len(index.nearest(unit_vectors(1), 3)[0]) == 3
    index.close()
    create_on_server(stand_in.url, "another", 12, {}, FAST, like="images").close()
    first, second = (given(stand_in.created[name]) for name in ("images", "another"))
    assert second["vectors"] == {**first["vectors"], "size": 12}
    assert second["hnsw_config"].items() >= first["hnsw_config"].items()
    for name in ("payload", "quantization_config"):
        assert second[name] == first[name]


@pytest.mark.parametrize(
    ("quantization", "config", "oversampling"),
    [
        ("int8", {"scalar": {"type": "int8"}}, 2.0),
        ("binary", {"binary": {}}, 4.0),
        ("product-x4", {"product": {"compression": "x4"}}, 4.0),
        ("product-x64", {"product": {"compression": "x64"}}, 4.0),
        ("turbo4", {"turbo": {"bits": "bits4"}}, 2.0),
        ("turbo1.5", {"turbo": {"bits": "bits1_5"}}, 4.0),
    ],
)
def test_what_is_quantized_is_scored_again_by_the_vectors(
    stand_in: StandIn, quantization: Any, config: dict[str, Any], oversampling: float
) -> None:
    settings = QdrantSettings(quantization=quantization)
    made = create_on_server(stand_in.url, "images", 8, {}, FAST, settings)
    assert given(stand_in.created["images"]) == {**PLAIN, "quantization_config": config}
    made.upsert(make_points(unit_vectors(20)))
    opened = open_on_server(stand_in.url, "images", FAST)
    for index in (made, opened):  # whoever opens it learns of it from the server
        stand_in.params.clear()
        index.nearest(unit_vectors(2), 3)
        (point,) = index.scroll(batch_size=1).__next__()
        index.recommend([point.id], [], 3)
        assert [params.quantization for params in stand_in.params] == [
            models.QuantizationSearchParams(rescore=True, oversampling=oversampling)
        ] * 3
        assert {params.hnsw_ef for params in stand_in.params} == {512}
        index.close()


@pytest.mark.parametrize("config", [{"turbo": {"bits": "bits1"}}, {"turbo": {}}])
def test_what_only_qdrants_client_quantizes_is_scored_again_too(config: dict[str, Any]) -> None:
    with GrpcStandIn() as server:
        client = server.client(timeout=120)
        for location in (server.url, client):
            made = create_on_server(location, f"{id(location)}", 8, {}, FAST)
            made.upsert(make_points(unit_vectors(20)))
            server.rest.created[f"{id(location)}"]["quantization_config"] = config
            index = open_on_server(location, f"{id(location)}", FAST)
            server.rest.params.clear()
            index.nearest(unit_vectors(1), 3)
            assert [params.quantization for params in server.rest.params] == [
                models.QuantizationSearchParams(rescore=True, oversampling=4.0)
            ]
            made.close()
            index.close()
        client.close()


def test_a_kind_that_is_not_known_is_scored_again() -> None:
    class Newest:
        later = "any"

    assert oversampling_of(cast("Any", Newest())) == 4.0
    assert oversampling_of(None) is None


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"shards": 0}, "shards is 0"),
        ({"shards": True}, "shards is True"),
        ({"replicas": 1.5}, r"replicas is 1\.5"),
        ({"write_consistency": 2}, "there are 1 replicas"),
        ({"replicas": 2, "write_consistency": 3}, "there are 2 replicas"),
        ({"payload_on_disk": "yes"}, "payload_on_disk is 'yes'"),
        ({"quantization": "int4"}, "give one of int8, binary, product-x4"),
        ({"quantized_in_memory": True}, "quantization is not"),
        ({"quantized_memory": "cold"}, "quantized_memory is set and quantization is not"),
        ({"vectors_memory": "pinned"}, "vectors_memory is 'pinned'; give one of cold, cached"),
        ({"payload_memory": True}, "payload_memory is True; give one of cold, cached"),
        ({"graph_memory": "hot"}, "graph_memory is 'hot'; give one of cold, cached, pinned"),
        (
            {"vectors_memory": "cold", "vectors_on_disk": False},
            "vectors_memory and vectors_on_disk are both set; leave vectors_on_disk out",
        ),
        (
            {"quantization": "int8", "quantized_memory": "cold", "quantized_in_memory": True},
            "quantized_memory and quantized_in_memory are both set",
        ),
    ],
)
def test_settings_that_cannot_be(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        QdrantSettings(**values)


@pytest.mark.parametrize("engine", [None, "faiss"])
def test_a_folder_has_no_such_settings(tmp_path: Path, tiny_model: EDJEModel, engine: Any) -> None:
    contract = tiny_model.contract()
    with pytest.raises(ConfigError, match=r"qdrant= \(shards, quantization\) is about a Qdrant"):
        ImageCollection.create(
            tmp_path, "images", contract, engine=engine,
            qdrant=QdrantSettings(shards=2, quantization="binary"),
        )  # fmt: skip
    with pytest.raises(ConfigError, match="nothing set"):
        CaptionCollection.create(tmp_path, "texts", contract, qdrant=QdrantSettings())
    with pytest.raises(ConfigError, match="give QdrantSettings"):
        ImageCollection.create(tmp_path, "images", contract, qdrant={"shards": 2})  # type: ignore
    assert not [*tmp_path.iterdir()]


def test_nothing_is_sent_when_they_are_no_settings(
    stand_in: StandIn, tiny_model: EDJEModel
) -> None:
    contract = tiny_model.contract()
    for kind in (ImageCollection, CaptionCollection):
        with pytest.raises(ConfigError, match="give QdrantSettings"):
            kind.create(stand_in.url, "images", contract, qdrant={"shards": 2})  # type: ignore
    assert not stand_in.seen


def test_collections_pass_them_on(stand_in: StandIn, tiny_model: EDJEModel) -> None:
    contract = tiny_model.contract()
    ImageCollection.create(stand_in.url, "images", contract, qdrant=ALL).close()
    CaptionCollection.create(stand_in.url, "texts", contract, qdrant=ALL).close()
    for name in ("images", "texts"):
        assert stand_in.created[name]["shard_number"] == 6
        assert stand_in.created[name]["quantization_config"]["scalar"]["always_ram"] is True


def test_in_memory_nothing_comes_of_them(memory: QdrantClient) -> None:
    for name, settings in {
        "images": ALL,
        "placed": PLACED,
        "turbo": QdrantSettings(quantization="turbo4"),
    }.items():
        index = create_on_server(memory, name, 8, {}, FAST, settings)
        index.upsert(make_points(unit_vectors(5)))
        assert len(index.nearest(unit_vectors(1), 3)[0]) == 3


@pytest.mark.qdrant_server
def test_a_server_gives_them_back() -> None:
    url = os.environ.get("EDJE_QDRANT_URL")
    if not url:
        pytest.skip("EDJE_QDRANT_URL names no server")
    client = QdrantClient(url=url, check_compatibility=False)
    name = f"edje-test-{uuid.uuid4().hex[:8]}"
    # Of replicas a single node makes only as many as it has room for, and says what was asked for.
    index = create_on_server(url, name, 8, {}, FAST, ALL)
    try:
        vectors = unit_vectors(300)
        index.upsert(make_points(vectors))
        config = client.get_collection(name).config
        params = json.loads(config.params.model_dump_json())
        assert params["shard_number"] == 6
        assert params["replication_factor"] == 3
        assert params["write_consistency_factor"] == 2
        assert params["on_disk_payload"] is True
        assert params["vectors"]["on_disk"] is True
        assert isinstance(config.quantization_config, models.ScalarQuantization)
        assert config.quantization_config.scalar.always_ram is True
        found = open_on_server(url, name, FAST)
        best = [ranked[0].image_id for ranked in found.nearest(vectors[:20], 5)]
        assert best == [point.id for point in make_points(vectors)[:20]]
        found.close()
    finally:
        index.close()
        client.delete_collection(name)
        client.close()


@pytest.mark.qdrant_server
def test_a_server_gives_placements_back() -> None:
    url = os.environ.get("EDJE_QDRANT_URL")
    if not url:
        pytest.skip("EDJE_QDRANT_URL names no server")
    client = QdrantClient(url=url, check_compatibility=False)
    name = f"edje-test-{uuid.uuid4().hex[:8]}"
    version = client.info().version
    try:
        if tuple(map(int, version.split(".")[:2])) < (1, 19):
            with pytest.raises(ConfigError, match=f"memory placement, which Qdrant {version}"):
                create_on_server(url, name, 8, {}, FAST, PLACED)
            assert not client.collection_exists(name)
            return
        index = create_on_server(url, name, 8, {}, FAST, PLACED)
        vectors = unit_vectors(300)
        index.upsert(make_points(vectors))
        best = [ranked[0].image_id for ranked in index.nearest(vectors[:20], 5)]
        assert best == [point.id for point in make_points(vectors)[:20]]
        index.close()
        config = client.get_collection(name).config
        vectors_params = config.params.vectors
        assert isinstance(vectors_params, models.VectorParams)
        assert vectors_params.memory == models.Memory.COLD
        assert config.params.payload == models.PayloadStorageParams(memory=models.Memory.CACHED)
        assert config.hnsw_config.memory == models.Memory.PINNED
        assert isinstance(config.quantization_config, models.ScalarQuantization)
        assert config.quantization_config.scalar.memory == models.Memory.PINNED
    finally:
        client.delete_collection(name)
        client.close()


@pytest.mark.qdrant_server
@pytest.mark.parametrize("protocol", ["server", "server_grpc"])
def test_turbo_quantization_of_a_server_loses_nothing(
    request: pytest.FixtureRequest, protocol: str
) -> None:
    engine: Engine = request.getfixturevalue(f"{protocol}_engine")
    client = QdrantClient(url=os.environ["EDJE_QDRANT_URL"], check_compatibility=False)
    if tuple(map(int, client.info().version.split(".")[:2])) < (1, 18):
        pytest.skip("the server has no TurboQuantization")
    vectors = unit_vectors(500, dim=64)
    made = engine.create("images", 64)
    made.upsert(make_points(vectors))
    (name,) = (
        c.name for c in client.get_collections().collections if c.name.startswith("edje-test-")
    )
    turbo = models.TurboQuantQuantizationConfig(bits=models.TurboQuantBitSize.BITS1)
    client.update_collection(
        name, quantization_config=cast("Any", models.TurboQuantization(turbo=turbo))
    )
    client.close()
    index = engine.open("images")
    queries = unit_vectors(20, dim=64, seed=1)
    best = np.argsort(-(queries @ vectors.T), axis=1)[:, 0]
    found = [ranked[0].image_id for ranked in index.nearest(queries, 5)]
    assert found == [image_id(int(n)) for n in best]
