"""Images that another client deletes after the first stage has found them."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grpc_stand_in import GrpcStandIn
from index_stand_in import StandIn
from qdrant_client import QdrantClient, models
from rounding import float32_slack
from searching import COUNT, encoding_of, make_collection, numbered_id, numbers

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import (
    ImagesDeletedError,
    ImagesNotFoundError,
    TokensNotFoundError,
)
from edje_qdrant.maintenance import compact
from edje_qdrant.model import EDJEModel
from edje_qdrant.rerank.token_cache import DeviceTokenCache
from edje_qdrant.search.batcher import SearchBatcher
from edje_qdrant.search.results import SearchResult
from edje_qdrant.search.retriever import TwoStageRetriever

TEXT = "a red square"


@dataclass
class Place:
    """A collection that others can delete from.

    Attributes:
        collection: The open collection.
        delete: Deletes images by another client.
        seen: Requests that the server has answered, if there is one.
    """

    collection: ImageCollection
    delete: Callable[[Sequence[str]], object]
    seen: list[str] = field(default_factory=list)


def on_server(location: Any, model: EDJEModel, other: QdrantClient, **options: Any) -> Place:
    collection = make_collection(location, model, **options)

    def delete(ids: Sequence[str]) -> None:
        other.delete("images", models.PointIdsList(points=[*ids]), wait=True)

    return Place(collection, delete)


PLACES = [
    "rest",
    "folder",
    *(
        pytest.param(place, marks=pytest.mark.slow)
        for place in ("rest, side file", "grpc", "memory")
    ),
]


@pytest.fixture(params=["rest", "folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path, tiny_model: EDJEModel) -> Iterator[Place]:
    if request.param.startswith("rest"):
        options = {"tokens": "file", "tokens_folder": tmp_path} if "file" in request.param else {}
        with StandIn() as server, closing(client_of(server.url)) as other:
            made = on_server(server.url, tiny_model, other, **options)
            with made.collection:
                made.seen = server.seen
                yield compacting(made) if options else made
    elif request.param == "grpc":
        with GrpcStandIn() as grpc, closing(grpc.client()) as own, closing(grpc.client()) as other:
            made = on_server(own, tiny_model, other)
            with made.collection:
                made.seen = grpc.seen
                yield made
    elif request.param == "memory":
        with closing(QdrantClient(":memory:")) as memory:
            yield on_server(memory, tiny_model, memory)
    else:
        with make_collection(tmp_path / "index", tiny_model) as collection:
            yield compacting(Place(collection, collection.delete))


def compacting(place: Place) -> Place:
    """Delete tokens with their images, which side files keep until they are compacted."""

    def delete(ids: Sequence[str]) -> None:
        place.delete(ids)
        compact(place.collection)

    return Place(place.collection, delete, place.seen)


def client_of(url: str) -> QdrantClient:
    return QdrantClient(url=url, check_compatibility=False)


@pytest.fixture
def retriever(place: Place, tiny_model: EDJEModel) -> TwoStageRetriever:
    return TwoStageRetriever(place.collection, tiny_model)


def deleting(
    monkeypatch: pytest.MonkeyPatch, place: Place, name: str, *deleted: Sequence[str]
) -> list[str]:
    """Delete images after each of the first calls of a method that finds candidates."""
    left, calls = [*deleted], []
    find = getattr(place.collection, name)

    def after() -> None:
        calls.append(name)
        if left:
            place.delete(left.pop(0))

    def found(*args: Any, **options: Any) -> Any:
        answer = find(*args, **options)
        after()
        return answer

    async def found_async(*args: Any, **options: Any) -> Any:
        answer = await find(*args, **options)
        await asyncio.to_thread(after)
        return answer

    monkeypatch.setattr(place.collection, name, found_async if name.endswith("c") else found)
    return calls


def ranked(result: SearchResult) -> list[tuple[int, str, float | None, int]]:
    assert not result.degraded, result.reason
    return [(hit.rank, hit.image_id, hit.score, hit.retrieval_rank) for hit in result]


def assert_alike(found: SearchResult, expected: SearchResult) -> None:
    """Scores may differ in the last digit: pairs are scored in batches of other sizes."""
    assert [row[:2] + row[3:] for row in ranked(found)] == [
        row[:2] + row[3:] for row in ranked(expected)
    ]
    scores = [
        [np.nan if hit.score is None else hit.score for hit in result]
        for result in (found, expected)
    ]
    np.testing.assert_allclose(*scores, rtol=0, atol=float32_slack(np.nan_to_num(scores)))


def search_of(retriever: TwoStageRetriever, kind: str, **options: Any) -> SearchResult:
    """Search in one of the ways that there are; all have the same result."""
    if kind == "asearch":
        return asyncio.run(retriever.asearch(TEXT, **options))
    if kind == "search_stream":
        *_, last = retriever.search_stream(TEXT, **options)
        return last
    if kind == "search_batch":
        return retriever.search_batch([TEXT, "two dogs on a boat"], **options)[0]
    if kind == "batcher":
        with SearchBatcher(retriever) as batcher:
            return batcher.search(TEXT, **options)
    return retriever.search(TEXT, **options)


@pytest.mark.parametrize("place", PLACES, indirect=True)
@pytest.mark.parametrize("kind", ["search", "search_batch", "asearch", "search_stream", "batcher"])
def test_a_search_is_that_of_the_images_left(
    place: Place, retriever: TwoStageRetriever, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    options = {"top_k": 10, "num_candidates": 12}
    before = search_of(retriever, kind, **options)
    gone = [hit.image_id for hit in before[:3]]
    name = "nearest_async" if kind == "asearch" else "nearest"
    with monkeypatch.context() as patch:
        calls = deleting(patch, place, name, gone)
        found = search_of(retriever, kind, **options)
    searches = calls if kind != "asearch" else [*calls, "again"]
    assert len(searches) == 2
    assert not {*gone} & {hit.image_id for hit in found}
    assert_alike(found, search_of(retriever, kind, **options))
    assert (found.candidates, found.scored) == (12, 12)


@pytest.mark.parametrize("place", ["rest", "rest, side file", "grpc"], indirect=True)
@pytest.mark.parametrize("filter", [None, {"number": [*range(20)]}, {"album": "2024"}])
def test_what_a_search_costs_a_server(
    place: Place,
    retriever: TwoStageRetriever,
    monkeypatch: pytest.MonkeyPatch,
    filter: dict[str, Any] | None,
) -> None:
    ordinary = 2 if place.collection.token_place == "payload" else 1
    options: Any = {"num_candidates": 12, "filter": filter}
    for kind in ("search", "search_batch", "asearch"):
        place.seen.clear()
        found = search_of(retriever, kind, **options)
        assert len(place.seen) == ordinary, place.seen
    if ordinary == 1:
        return
    gone = [hit.image_id for hit in found[:2]]
    own = place.delete
    monkeypatch.setattr(place, "delete", lambda ids: (own(ids), place.seen.clear()))
    deleting(monkeypatch, place, "nearest", gone)
    retriever.search(TEXT, **options)
    # The tokens, those that are missing again, the candidates again, and their tokens.
    assert len(place.seen) == 4


@pytest.mark.parametrize("options", [{"on_missing": "first_stage"}, {"group_by": "video"}])
def test_with_other_options(
    place: Place,
    retriever: TwoStageRetriever,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    gone = [hit.image_id for hit in retriever.search(TEXT, top_k=3, num_candidates=12, **options)]
    deleting(monkeypatch, place, "nearest", gone)
    found = retriever.search(TEXT, num_candidates=12, **options)
    assert not {*gone} & {hit.image_id for hit in found}
    assert_alike(found, retriever.search(TEXT, num_candidates=12, **options))


def test_images_deleted_during_the_second_search_too_are_left_out(
    place: Place, retriever: TwoStageRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [hit.image_id for hit in retriever.search(TEXT, top_k=12, num_candidates=12)]
    calls = deleting(monkeypatch, place, "nearest", first[:2], first[2:6])
    found = retriever.search(TEXT, top_k=12, num_candidates=12)
    assert len(calls) == 2
    assert (found.candidates, found.scored, len(found)) == (8, 8, 8)
    assert [hit.rank for hit in found] == [*range(1, 9)]
    assert not {*first[:6]} & {hit.image_id for hit in found}
    assert not found.degraded


def test_all_images_deleted(
    place: Place, retriever: TwoStageRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = [numbered_id(number) for number in range(COUNT)]
    deleting(monkeypatch, place, "nearest", everything)
    assert [*retriever.search(TEXT)] == []
    assert [*retriever.search(TEXT)] == []


def test_within_a_budget_they_are_left_out(
    place: Place, retriever: TwoStageRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = [hit.image_id for hit in retriever.search(TEXT, top_k=3, num_candidates=12)]
    calls = deleting(monkeypatch, place, "nearest", gone)
    found = retriever.search(TEXT, top_k=12, num_candidates=12, budget_ms=1e6)
    assert len(calls) == 1
    assert (found.candidates, found.scored, len(found)) == (9, 9, 9)
    assert not found.degraded


def test_in_a_stream_they_are_left_out_once_some_are_scored(
    place: Place, retriever: TwoStageRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    (candidates,) = place.collection.nearest(retriever.model.encode_texts([TEXT]), 20)
    calls = deleting(monkeypatch, place, "nearest")
    stream = retriever.search_stream(TEXT, first_ms=1e-6, top_k=20, num_candidates=20)
    assert next(stream).scored == 4
    place.delete([candidate.image_id for candidate in candidates[14:16]])
    *_, last = stream
    assert len(calls) == 1
    assert (last.candidates, last.scored, len(last)) == (18, 18, 18)
    assert not last.degraded


@pytest.mark.parametrize("strategy", ["average_vector", "best_score"])
def test_recommendations(
    place: Place, retriever: TwoStageRetriever, monkeypatch: pytest.MonkeyPatch, strategy: Any
) -> None:
    options: Any = {"text": TEXT, "num_candidates": 12, "strategy": strategy}
    liked = [numbered_id(5)]
    gone = [hit.image_id for hit in retriever.recommend(liked, top_k=3, **options)]
    calls = deleting(monkeypatch, place, "recommend", gone)
    found = retriever.recommend(liked, **options)
    assert len(calls) == 2
    assert_alike(found, retriever.recommend(liked, **options))
    with pytest.raises(ImagesNotFoundError):
        retriever.recommend(gone, **options)


def test_a_search_by_image_has_no_second_stage(
    place: Place, retriever: TwoStageRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding = encoding_of(retriever.model)
    query = type(encoding)(encoding.embeddings[:1], encoding.tokens[:1])
    deleting(monkeypatch, place, "nearest", [numbered_id(0)])
    assert numbers(retriever.search_by_image(query))[0] == 0
    assert 0 not in numbers(retriever.search_by_image(query))


@pytest.mark.parametrize("keep", ["codes", "tokens"])
def test_with_a_cache(
    place: Place, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch, keep: Any
) -> None:
    cache = DeviceTokenCache(1 << 24, keep=keep)
    retriever = TwoStageRetriever(place.collection, tiny_model, token_cache=cache)
    (candidates,) = place.collection.nearest(tiny_model.encode_texts([TEXT]), 12)
    cache.preload(place.collection, [candidates[0].image_id])
    gone = [candidate.image_id for candidate in candidates[:3]]
    deleting(monkeypatch, place, "nearest", gone)
    found = retriever.search(TEXT, num_candidates=12)
    assert not {*gone} & {hit.image_id for hit in found}
    assert_alike(found, retriever.search(TEXT, num_candidates=12))


def test_with_embeddings_on_a_device(
    place: Place, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are compared with the engine's every two seconds; none of that passes here."""
    retriever = TwoStageRetriever(place.collection, tiny_model, first_stage="device")
    monkeypatch.setattr("edje_qdrant.search.device_index._LOOK_EVERY", 1e9)
    gone = [hit.image_id for hit in retriever.search(TEXT, top_k=3, num_candidates=12)]
    place.delete(gone)
    found = retriever.search(TEXT, num_candidates=12)
    assert not {*gone} & {hit.image_id for hit in found}
    assert (found.candidates, found.scored) == (12, 12)


def test_images_named_by_the_caller_are_missed(place: Place, retriever: TwoStageRetriever) -> None:
    (candidates,) = place.collection.nearest(retriever.model.encode_texts([TEXT]), 5)
    place.delete([candidates[0].image_id])
    with pytest.raises(ImagesDeletedError, match=candidates[0].image_id):
        place.collection.tokens(candidates)
    with pytest.raises(TokensNotFoundError, match="not in the collection"):
        retriever.score(TEXT, [candidates[0].image_id])


def test_lost_tokens_are_an_error_still(
    place: Place, retriever: TwoStageRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The point is there, its tokens are not."""
    (candidates,) = place.collection.nearest(retriever.model.encode_texts([TEXT]), 5)
    lost, gone = candidates[0].image_id, candidates[1].image_id
    place.collection.index.set_payload({lost: {"_edje": {"codec": "float16"}}})
    deleting(monkeypatch, place, "nearest", [gone])
    with pytest.raises(TokensNotFoundError) as caught:
        retriever.search(TEXT)
    assert caught.value.image_ids == (lost,)
    assert not isinstance(caught.value, ImagesDeletedError)
    found = retriever.search(TEXT, on_missing="first_stage")
    assert found.degraded
    assert found.scored == found.candidates - 1 == COUNT - 2


def test_scores_of_a_slice_with_deleted_images_are_those_without_them(
    place: Place, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = TwoStageRetriever(place.collection, tiny_model)
    before = {hit.image_id: hit.score for hit in retriever.search(TEXT, top_k=20)}
    deleting(monkeypatch, place, "nearest", [*before][:2], [*before][2:4])
    after = {hit.image_id: hit.score for hit in retriever.search(TEXT, top_k=16)}
    both = before.keys() & after.keys()
    assert len(both) == 16
    torch.testing.assert_close([before[i] for i in both], [after[i] for i in both])


@pytest.mark.qdrant_server
@pytest.mark.parametrize("over_grpc", [False, True])
def test_on_a_real_server(
    tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch, over_grpc: bool
) -> None:
    url, port = os.environ["EDJE_QDRANT_URL"], os.environ.get("EDJE_QDRANT_GRPC_PORT")
    if over_grpc and not port:
        pytest.skip("EDJE_QDRANT_GRPC_PORT names no server")
    name = f"edje-test-{uuid.uuid4().hex[:8]}"
    options: Any = {"url": url, "check_compatibility": False}
    if over_grpc and port:
        options |= {"grpc_port": int(port), "prefer_grpc": True}
    with closing(QdrantClient(**options)) as own, closing(QdrantClient(**options)) as other:
        try:
            with ImageCollection.create(own, name, tiny_model.contract()) as collection:
                ids = [numbered_id(number) for number in range(COUNT)]
                payloads = [{"number": number} for number in range(COUNT)]
                collection.add(ids, encoding_of(tiny_model), payloads)

                def delete(gone: Sequence[str]) -> None:
                    other.delete(name, models.PointIdsList(points=[*gone]), wait=True)

                place = Place(collection, delete)
                retriever = TwoStageRetriever(collection, tiny_model)
                gone = [hit.image_id for hit in retriever.search(TEXT, top_k=3, num_candidates=12)]
                calls = deleting(monkeypatch, place, "nearest", gone)
                found = retriever.search(TEXT, num_candidates=12)
                assert len(calls) == 2
                assert_alike(found, retriever.search(TEXT, num_candidates=12))
        finally:
            other.delete_collection(name)
