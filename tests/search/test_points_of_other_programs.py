"""Points that another program wrote into a collection: searches leave them out."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from grpc_stand_in import GrpcStandIn
from index_stand_in import StandIn
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models
from searching import COUNT, encoding_of, make_collection, numbered_id, payload_of

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.model import EDJEModel
from edje_qdrant.rerank.token_cache import DeviceTokenCache
from edje_qdrant.search.results import SearchResult
from edje_qdrant.search.retriever import TwoStageRetriever

TEXT = "a red square"
KINDS = ["uuid", "integer", "copy"]


@dataclass
class Place:
    """A collection that another program writes to.

    Attributes:
        collection: The open collection.
        other: The other program's client.
        near: The embedding that the points are near to.
        name: The collection's name.
        seen: Requests that the server has answered, if there is one.
    """

    collection: ImageCollection
    other: QdrantClient
    near: NDArray[np.float32]
    name: str = "images"
    seen: list[str] = field(default_factory=list)

    def write(self, kind: str, count: int, start: int = 0) -> None:
        """Write points that are nearer to the query than any image."""
        rng = np.random.default_rng(start)
        points = []
        for number in range(start, start + count):
            vector = self.near + 1e-3 * rng.standard_normal(len(self.near))
            payload: dict[str, Any] = {"album": "2024", "number": number}
            point_id: int | str = str(uuid.UUID(int=(1 << 100) + number))
            if kind != "uuid":
                point_id = 1000 + number
            if kind == "copy":
                payload["_edje"] = {"codec": "float16"}
            points.append(models.PointStruct(id=point_id, vector=vector.tolist(), payload=payload))
        self.other.upsert(self.name, points, wait=True)


@pytest.fixture(params=["rest"])
def place(request: pytest.FixtureRequest, tiny_model: EDJEModel) -> Iterator[Place]:
    near = tiny_model.encode_texts([TEXT])[0]
    if request.param == "rest":
        with (
            StandIn() as server,
            closing(QdrantClient(url=server.url, check_compatibility=False)) as other,
            make_collection(server.url, tiny_model) as collection,
        ):
            yield Place(collection, other, near, seen=server.seen)
    elif request.param == "grpc":
        with (
            GrpcStandIn() as grpc,
            closing(grpc.client()) as own,
            closing(grpc.client()) as other,
            make_collection(own, tiny_model) as collection,
        ):
            yield Place(collection, other, near, seen=grpc.seen)
    else:
        with closing(QdrantClient(":memory:")) as memory:
            yield Place(make_collection(memory, tiny_model), memory, near)


@pytest.fixture
def retriever(place: Place, tiny_model: EDJEModel) -> TwoStageRetriever:
    return TwoStageRetriever(place.collection, tiny_model)


def ranked(result: SearchResult) -> list[tuple[Any, ...]]:
    assert not result.degraded, result.reason
    return [(hit.rank, hit.image_id, hit.score, hit.retrieval_rank) for hit in result]


def results(retriever: TwoStageRetriever) -> list[list[tuple[Any, ...]]]:
    """Return what all kinds of searches find."""
    encoding = encoding_of(retriever.model)
    image = type(encoding)(encoding.embeddings[:1], encoding.tokens[:1])
    options: Any = {"num_candidates": 12}
    *_, last = retriever.search_stream(TEXT, **options)
    return [
        ranked(retriever.search(TEXT, **options)),
        ranked(retriever.search(TEXT, filter={"album": "2024"}, **options)),
        ranked(retriever.search(TEXT, group_by="video", **options)),
        ranked(retriever.search(TEXT, budget_ms=1e6, **options)),
        ranked(retriever.search_batch([TEXT, "b"], **options)[0]),
        ranked(asyncio.run(retriever.asearch(TEXT, **options))),
        ranked(last),
        ranked(retriever.search_by_image(image)),
        ranked(retriever.recommend([numbered_id(3)], text=TEXT, **options)),
        ranked(retriever.recommend([numbered_id(3)], strategy="best_score", **options)),
    ]


@pytest.mark.parametrize(
    ("kind", "count"), [("uuid", 3), ("uuid", 60), ("integer", 30), ("copy", 60)]
)
def test_searches_find_the_images_alone(
    place: Place, retriever: TwoStageRetriever, kind: str, count: int
) -> None:
    before = results(retriever)
    place.write(kind, count)
    assert results(retriever) == before


@pytest.mark.parametrize("place", ["grpc", "memory"], indirect=True)
def test_over_grpc_and_in_memory(place: Place, retriever: TwoStageRetriever) -> None:
    before = results(retriever)
    place.write("uuid", 30)
    place.write("integer", 30)
    assert results(retriever) == before
    assert results(TwoStageRetriever(place.collection, retriever.model)) == before


@pytest.mark.parametrize(
    ("kind", "count", "requests"),
    [("uuid", 0, 2), ("integer", 10, 2), ("uuid", 20, 3), ("uuid", 60, 3), ("copy", 60, 4)],
)
def test_what_it_costs(
    place: Place, retriever: TwoStageRetriever, kind: str, count: int, requests: int
) -> None:
    if count:
        place.write(kind, count)
    place.seen.clear()
    retriever.search(TEXT, num_candidates=12)
    assert len(place.seen) == requests  # copies are left out by their ids, in two steps
    place.seen.clear()
    retriever.search(TEXT, num_candidates=12)
    assert len(place.seen) == 2


def test_more_come_later(place: Place, retriever: TwoStageRetriever) -> None:
    before = ranked(retriever.search(TEXT, num_candidates=12))
    for start in range(0, 80, 20):
        place.write("uuid", 20, start)
        assert ranked(retriever.search(TEXT, num_candidates=12)) == before
    place.seen.clear()
    place.write("uuid", 200, 100)
    place.seen.clear()
    assert ranked(retriever.search(TEXT, num_candidates=12)) == before
    assert len(place.seen) == 2  # by now the condition is sent


def test_strict_mode_takes_ids_only(
    place: Place, retriever: TwoStageRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ranked(retriever.search(TEXT, num_candidates=12))
    place.write("uuid", 60)
    index: Any = place.collection.index
    strict = dataclasses.replace(index._backend._limits, unindexed_reads=False)
    monkeypatch.setattr(index._backend, "_limits", strict)
    assert ranked(retriever.search(TEXT, num_candidates=12)) == before


@pytest.mark.parametrize("kind", ["uuid", "integer"])
def test_with_a_cache_and_with_embeddings_on_a_device(
    place: Place, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    before = ranked(TwoStageRetriever(place.collection, tiny_model).search(TEXT, num_candidates=12))
    place.write(kind, 30)
    cache = DeviceTokenCache(1 << 24)
    assert cache.preload(place.collection) == COUNT
    monkeypatch.setattr("edje_qdrant.search.device_index._LOOK_EVERY", -1)
    retriever = TwoStageRetriever(
        place.collection, tiny_model, token_cache=cache, first_stage="device"
    )
    for start in (100, 200):
        assert ranked(retriever.search(TEXT, num_candidates=12)) == before
        place.write(kind, 5, start)
    place.seen.clear()
    retriever.search(TEXT, num_candidates=12)
    place.seen.clear()
    assert ranked(retriever.search(TEXT, num_candidates=12)) == before
    assert len(place.seen) <= 2  # what was written is counted, and the payloads are read
    place.other.delete(place.name, models.FilterSelector(filter=models.Filter(must=[])), wait=True)
    assert [*retriever.search(TEXT)] == []


@pytest.mark.qdrant_server
@pytest.mark.parametrize("over_grpc", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [3, 30, 60])
def test_on_a_real_server(tiny_model: EDJEModel, over_grpc: bool, kind: str, count: int) -> None:
    url, port = os.environ["EDJE_QDRANT_URL"], os.environ.get("EDJE_QDRANT_GRPC_PORT")
    if over_grpc and not port:
        pytest.skip("EDJE_QDRANT_GRPC_PORT names no server")
    name = f"edje-test-{uuid.uuid4().hex[:8]}"
    options: Any = {"url": url, "check_compatibility": False}
    if over_grpc and port:
        options |= {"grpc_port": int(port), "prefer_grpc": True}
    near = tiny_model.encode_texts([TEXT])[0]
    with closing(QdrantClient(**options)) as own, closing(QdrantClient(**options)) as other:
        try:
            with ImageCollection.create(own, name, tiny_model.contract()) as collection:
                ids = [numbered_id(number) for number in range(COUNT)]
                payloads = [payload_of(number) for number in range(COUNT)]
                collection.add(ids, encoding_of(tiny_model), payloads)
                retriever = TwoStageRetriever(collection, tiny_model)
                before = results(retriever)
                Place(collection, other, near, name).write(kind, count)
                assert results(retriever) == before
        finally:
            other.delete_collection(name)
