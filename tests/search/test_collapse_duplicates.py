"""Searches that show one of each near-duplicate."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc_stand_in import GrpcStandIn
from index_stand_in import StandIn
from numpy.typing import NDArray
from qdrant_client import models
from searching import COUNT, TEXTS, encoding_of, engine_places, numbered_id, numbers, payload_of

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.likeness import TIE
from edje_qdrant.errors import ConfigError
from edje_qdrant.model import EDJEModel
from edje_qdrant.search.batcher import SearchBatcher
from edje_qdrant.search.results import SearchHit, SearchResult
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.types import ImageEncoding

TEXT = TEXTS[0]
FAMILY = 4  # images that look alike
ALL: dict[str, Any] = {"top_k": COUNT, "num_candidates": COUNT}
PLACES = [
    "edge",
    "rest",
    *(pytest.param(place, marks=pytest.mark.slow) for place in ("faiss", "memory", "grpc")),
]


@cache
def alike(model: EDJEModel) -> ImageEncoding:
    """Encodings of ten families of four: images `n`, `n + 10`, `n + 20` and `n + 30`."""
    rng = np.random.default_rng(3)
    width = encoding_of(model).embeddings.shape[1]
    centres = rng.standard_normal((COUNT // FAMILY, width))
    noise = rng.standard_normal((COUNT, width))
    vectors = np.tile(centres, (FAMILY, 1)) + 0.05 * noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return ImageEncoding(vectors.astype(np.float32), encoding_of(model).tokens)


def collection_at(location: Any, model: EDJEModel, **options: Any) -> ImageCollection:
    collection = ImageCollection.create(location, "images", model.contract(), **options)
    ids = [numbered_id(number) for number in range(COUNT)]
    collection.add(ids, alike(model), [payload_of(number) for number in range(COUNT)])
    collection.flush()
    return collection


@pytest.fixture(params=PLACES)
def retriever(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_model: EDJEModel
) -> Iterator[TwoStageRetriever]:
    with ExitStack() as stack:
        options: dict[str, Any] = {}
        place: Any = tmp_path
        if request.param == "rest":
            place = stack.enter_context(StandIn()).url
        elif request.param == "grpc":
            server = stack.enter_context(GrpcStandIn())
            place = stack.enter_context(closing(server.client()))
        else:
            place = engine_places(tmp_path)[request.param]
            if isinstance(place, tuple):
                place, options["engine"] = place
        collection = collection_at(place, tiny_model, **options)
        yield stack.enter_context(TwoStageRetriever(collection, tiny_model))


@pytest.fixture(scope="module")
def in_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: EDJEModel
) -> Iterator[TwoStageRetriever]:
    collection = collection_at(tmp_path_factory.mktemp("alike"), tiny_model)
    with TwoStageRetriever(collection, tiny_model) as opened:
        yield opened


def number_of(image_id: str) -> int:
    return int(image_id[-12:])


def shown(result: SearchResult) -> list[tuple[int, list[int]]]:
    """Return the number of each hit, on all pages, and those of its duplicates."""
    hits: list[SearchHit] = [*result.hits, *result.remaining]
    return [(number_of(h.image_id), [*map(number_of, h.duplicates)]) for h in hits]


def expected(order: list[int], vectors: NDArray[np.float32], least: float) -> Any:
    """Collapse a ranking by the definition, one image after another."""
    kept: dict[int, list[int]] = {}
    for image in order:
        for other, others in kept.items():
            if vectors[image] @ vectors[other] >= least - TIE:
                others.append(image)
                break
        else:
            kept[image] = []
    return [*kept.items()]


def test_of_near_duplicates_only_the_best_is_a_hit(
    retriever: TwoStageRetriever, tiny_model: EDJEModel
) -> None:
    plain = retriever.search(TEXT, **ALL)
    assert all(hit.duplicates == () for hit in plain)
    found = retriever.search(TEXT, **ALL, collapse_duplicates=True)
    order = numbers(plain)
    assert len(found) == COUNT // FAMILY
    assert {number % 10 for number in numbers(found)} == {*range(10)}
    for hit in found:
        number = number_of(hit.image_id)
        same = [other for other in order if other % 10 == number % 10]
        assert [number, *map(number_of, hit.duplicates)] == same
    # A hit is the same as without the option, but for its place.
    scores = {hit.image_id: (hit.score, hit.retrieval_rank) for hit in plain}
    for rank, hit in enumerate(found, 1):
        score, place = scores[hit.image_id]
        assert hit.score == pytest.approx(score, abs=1e-5)
        assert (hit.retrieval_rank, hit.rank) == (place, rank)
    assert (found.candidates, found.scored) == (COUNT, COUNT)
    assert [hit["duplicates"] for hit in found.as_dict()["hits"]] == [h.duplicates for h in found]
    least = retriever.collection.likeness.cosine(0.96)
    vectors = alike(tiny_model).embeddings
    assert shown(found) == expected(order, vectors, least)


def test_the_number_of_hits_counts_what_is_left(tmp_path: Path, tiny_model: EDJEModel) -> None:
    with TwoStageRetriever(collection_at(tmp_path, tiny_model), tiny_model) as retriever:
        check_pages(retriever)


def check_pages(in_folder: TwoStageRetriever) -> None:
    whole = in_folder.search(TEXT, **ALL, collapse_duplicates=True)
    first = in_folder.search(TEXT, top_k=7, num_candidates=COUNT, collapse_duplicates=True)
    assert [h.image_id for h in first] == [h.image_id for h in whole[:7]]
    assert shown(first) == shown(whole)
    page = first.next(5)
    assert first.cursor is not None
    again = in_folder.resume(first.cursor, top_k=5)
    assert [*again] == [*page] == [*whole[7:]]
    assert all(len(hit.duplicates) == FAMILY - 1 for hit in again)
    in_folder.collection.delete([page[0].duplicates[1], page[1].image_id])
    later = in_folder.resume(first.cursor, top_k=5)
    assert [h.image_id for h in later] == [page[0].image_id, page[2].image_id]
    assert later[0].duplicates == (page[0].duplicates[0], page[0].duplicates[2])


@pytest.mark.parametrize("likeness", [0.05, 0.9, 1])
def test_a_number_is_the_likeness_of_near_duplicates(
    in_folder: TwoStageRetriever, tiny_model: EDJEModel, likeness: float
) -> None:
    order = numbers(in_folder.search(TEXT, **ALL))
    found = in_folder.search(TEXT, **ALL, collapse_duplicates=likeness)
    least = in_folder.collection.likeness.cosine(likeness)
    assert shown(found) == expected(order, alike(tiny_model).embeddings, least)
    assert len(found) == (10 if likeness == 0.9 else COUNT if likeness == 1 else len(found))


def test_every_kind_of_search_collapses_alike(
    retriever: TwoStageRetriever, tiny_model: EDJEModel
) -> None:
    options: dict[str, Any] = {"top_k": 6, "num_candidates": 24, "collapse_duplicates": True}
    single = [shown(retriever.search(text, **options)) for text in TEXTS]
    assert [*map(shown, retriever.search_batch(TEXTS, **options))] == single
    assert shown(asyncio.run(retriever.asearch(TEXT, **options))) == single[0]
    *_, last = retriever.search_stream(TEXT, first_ms=1, **options)
    assert shown(last) == single[0]
    with SearchBatcher(retriever) as batcher:
        futures = [batcher.submit(text, **options) for text in TEXTS]
        assert [shown(future.result()) for future in futures] == single
    own = TwoStageRetriever(retriever.collection, tiny_model, first_stage="device")
    assert [*map(shown, own.search_batch(TEXTS, **options))] == single


def test_searches_without_reranking_collapse_too(
    retriever: TwoStageRetriever, tiny_model: EDJEModel
) -> None:
    image = ImageEncoding(alike(tiny_model).embeddings[3:4], alike(tiny_model).tokens[3:4])
    plain = retriever.search_by_image(image, top_k=COUNT)
    found = retriever.search_by_image(image, top_k=10, collapse_duplicates=True)
    vectors = alike(tiny_model).embeddings
    least = retriever.collection.likeness.cosine(0.96)
    assert shown(found) == expected(numbers(plain), vectors, least)
    assert shown(found)[0] == (3, [n for n in numbers(plain) if n % 10 == 3][1:])
    for text in (None, TEXT):
        given: dict[str, Any] = {"text": text, **ALL}
        like = numbers(retriever.recommend([numbered_id(3)], **given))
        collapsed = retriever.recommend([numbered_id(3)], **given, collapse_duplicates=True)
        assert shown(collapsed) == expected(like, vectors, least)
        assert 3 not in {number for hit, others in shown(collapsed) for number in (hit, *others)}


def test_filters_groups_and_cutoffs_apply_too(
    in_folder: TwoStageRetriever, tiny_model: EDJEModel
) -> None:
    vectors = alike(tiny_model).embeddings
    least = in_folder.collection.likeness.cosine(0.96)
    filter = models.Filter(must=[models.FieldCondition(key="number", range=models.Range(lt=20))])
    order = numbers(in_folder.search(TEXT, **ALL, filter=filter))
    found = in_folder.search(TEXT, **ALL, filter=filter, collapse_duplicates=True)
    assert shown(found) == expected(order, vectors, least)
    assert {len(others) for _, others in shown(found)} == {1}

    # First one of each look, then the best of each group.
    order = numbers(in_folder.search(TEXT, **ALL))
    looks = expected(order, vectors, least)
    albums = in_folder.search(TEXT, **ALL, group_by="album", collapse_duplicates=True)
    best = {payload_of(number)["album"]: (number, others) for number, others in looks[::-1]}
    assert sorted(shown(albums)) == sorted(best.values())

    plain = in_folder.search(TEXT, **ALL)
    scores = [hit.score for hit in plain]
    assert scores[20] is not None
    cut = in_folder.search(TEXT, **ALL, min_score=scores[20] - 1e-4, collapse_duplicates=True)
    assert shown(cut) == expected(order[:21], vectors, least)


def test_a_budget_that_ends_does_not_change_what_is_alike(in_folder: TwoStageRetriever) -> None:
    found = in_folder.search(TEXT, **ALL, budget_ms=1e-3, collapse_duplicates=True)
    assert found.degraded
    assert found.scored == 0
    assert len(found) == COUNT // FAMILY
    assert all(len(hit.duplicates) == FAMILY - 1 for hit in found)


def test_what_is_deleted_in_between_stands_for_itself_alone(
    in_folder: TwoStageRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = in_folder.collection.index
    gone = numbers(in_folder.search(TEXT, **ALL))[0]
    read = index.vectors

    def vectors(image_ids: Any) -> Any:
        return {i: each for i, each in read(image_ids).items() if number_of(i) != gone}

    monkeypatch.setattr(index, "vectors", vectors)
    found = shown(in_folder.search(TEXT, **ALL, collapse_duplicates=True))
    assert found[0] == (gone, [])
    assert len(found) == 1 + COUNT // FAMILY


def test_other_values_are_refused(in_folder: TwoStageRetriever) -> None:
    image = numbered_id(1)
    for wrong in (0, -0.5, 1.5, "yes", None, float("nan"), [True]):
        given: Any = {"collapse_duplicates": wrong}
        for search in (
            partial(in_folder.search, TEXT),
            partial(in_folder.recommend, [image]),
            partial(in_folder.search_by_image, image),
        ):
            with pytest.raises(ConfigError, match="collapse_duplicates"):
                search(**given)
