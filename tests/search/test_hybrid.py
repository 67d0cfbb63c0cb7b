"""Searches by looks and words together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from searching import COUNT, encoding_of, engine_places, full_scores, numbered_id, payload_of

from edje_qdrant import SearchBatcher, TwoStageRetriever
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError
from edje_qdrant.model import EDJEModel
from edje_qdrant.search.results import SearchResult

TEXT = "two dogs in Lisbon"
#: An image that is among the last by its looks.
NAMED = 0


def far_from(model: EDJEModel, text: str) -> list[int]:
    cosines, _ = full_scores(model, text)
    return np.argsort(cosines).tolist()


def payloads(model: EDJEModel) -> list[dict[str, Any]]:
    made = [payload_of(number) for number in range(COUNT)]
    for number in far_from(model, TEXT)[:3]:
        made[number]["caption"] = "Lisbon"
    return made


@pytest.fixture(params=["edge", "memory"])
def retriever(
    request: pytest.FixtureRequest, tiny_model: EDJEModel, tmp_path: Path
) -> Iterator[TwoStageRetriever]:
    place = engine_places(tmp_path)[request.param]
    collection = ImageCollection.create(
        place, "images", tiny_model.contract(), text_fields=["caption", "path"]
    )
    ids = [numbered_id(number) for number in range(COUNT)]
    collection.add(ids, encoding_of(tiny_model), payloads(tiny_model))
    with TwoStageRetriever(collection, tiny_model, token_cache=None) as made:
        yield made


@pytest.fixture
def named(tiny_model: EDJEModel) -> set[int]:
    """Return the images whose caption has a word of the text, and whose looks are unlike it."""
    return {*far_from(tiny_model, TEXT)[:3]}


def found(result: SearchResult) -> set[int]:
    return {hit.payload["number"] for hit in (*result.hits, *result.remaining)}


def test_words_find_what_looks_do_not(
    retriever: TwoStageRetriever, tiny_model: EDJEModel, named: set[int]
) -> None:
    options: dict[str, Any] = {"num_candidates": 12, "top_k": 12}
    plain = retriever.search(TEXT, **options)
    hybrid = retriever.search(TEXT, hybrid=True, words_weight=1, **options)
    assert not found(plain) & named
    assert named <= found(hybrid)
    assert hybrid.candidates == hybrid.scored == 12
    cosines, logits = full_scores(tiny_model, TEXT)
    for hit in hybrid:
        number = hit.payload["number"]
        assert hit.retrieval_score == pytest.approx(cosines[number], abs=1e-5)
        assert hit.score == pytest.approx(logits[number], abs=1e-3)
    assert sorted(hit.retrieval_rank for hit in hybrid) == [*range(1, 13)]


def test_a_weight_decides_how_many_are_found_by_words(
    retriever: TwoStageRetriever, named: set[int]
) -> None:
    few, many = (
        retriever.search(TEXT, hybrid=True, num_candidates=3, top_k=3, words_weight=weight)
        for weight in (0.01, 100)
    )
    assert len(found(few) & named) < len(found(many) & named)


def test_every_way_to_search_finds_the_same(retriever: TwoStageRetriever, named: set[int]) -> None:
    options: dict[str, Any] = {"num_candidates": 10, "top_k": 10, "hybrid": True}
    expected = retriever.search(TEXT, **options)

    def firsts(result: SearchResult) -> list[tuple[int, str]]:
        return sorted((hit.retrieval_rank, hit.image_id) for hit in result)

    assert firsts(retriever.search_batch(["b", TEXT], **options)[1]) == firsts(expected)
    assert firsts([*retriever.search_stream(TEXT, first_ms=1, **options)][-1]) == firsts(expected)
    assert firsts(asyncio.run(retriever.asearch(TEXT, **options))) == firsts(expected)
    with SearchBatcher(retriever) as batcher:
        plain = batcher.submit(TEXT, num_candidates=10)
        assert firsts(batcher.search(TEXT, **options)) == firsts(expected)
        assert not found(plain.result()) & named
    page = retriever.search(TEXT, **{**options, "top_k": 4})
    assert page.cursor is not None
    further = retriever.resume(page.cursor, top_k=6)
    assert [hit.image_id for hit in (*page, *further)] == [hit.image_id for hit in expected]


def test_options_work_with_words(retriever: TwoStageRetriever, named: set[int]) -> None:
    options: dict[str, Any] = {"num_candidates": 12, "hybrid": True}
    odd = retriever.search(TEXT, filter={"album": "2024"}, **options)
    assert found(odd) == {n for n in found(odd) if n % 2}
    assert {n for n in named if n % 2} <= found(odd)
    grouped = retriever.search(TEXT, group_by="video", top_k=5, **options)
    groups = [hit.group for hit in grouped if hit.group is not None]
    assert len(groups) == len({*groups})
    collapsed = retriever.search(TEXT, collapse_duplicates=True, **options)
    assert found(collapsed) | {
        int(each[-12:]) for hit in (*collapsed.hits, *collapsed.remaining)
        for each in hit.duplicates
    } == found(retriever.search(TEXT, **options))  # fmt: skip
    assert len(retriever.search(TEXT, min_score=1e9, **options)) == 0
    slow = retriever.search(TEXT, budget_ms=1e-3, **options)
    assert slow.degraded
    for fusion in ("rrf", "blend"):
        fused = retriever.search(TEXT, fusion=fusion, top_k=12, **options)
        scores = [hit.fusion_score for hit in fused]
        assert scores == sorted(scores, reverse=True)
        assert found(fused) == found(retriever.search(TEXT, **options))


def test_words_are_added_to_the_score(
    retriever: TwoStageRetriever, tiny_model: EDJEModel, named: set[int]
) -> None:
    options: dict[str, Any] = {
        "num_candidates": 12, "top_k": 12, "hybrid": True, "words_weight": 1,
    }  # fmt: skip
    result = retriever.search(TEXT, **options)
    added = {hit.payload["number"]: (hit.fusion_score or 0) - (hit.score or 0) for hit in result}
    assert {number for number, more in added.items() if more > 0.05} == named
    assert all(more == pytest.approx(0, abs=1e-6) for n, more in added.items() if n not in named)
    scores = [hit.fusion_score for hit in result]
    assert scores == sorted(scores, reverse=True)
    first = retriever.search(TEXT, fusion_weights=(1000, 1), **options)
    assert {hit.payload["number"] for hit in first[:3]} == named
    assert (
        first.hits
        == retriever.search(TEXT, fusion="words", fusion_weights=(1000, 1), **options).hits
    )
    plain = retriever.search(TEXT, fusion="rerank", **options)
    assert all(hit.fusion_score is None for hit in plain)
    grouped = retriever.search(TEXT, group_by="number", fusion_weights=(1000, 1), **options)
    assert {hit.payload["number"] for hit in grouped[:3]} == named


def test_ranks_of_the_first_stage_are_fused_as_they_are(retriever: TwoStageRetriever) -> None:
    fused = retriever.search(
        TEXT, hybrid=True, fusion="rrf", fusion_weights=(1, 0), num_candidates=12, top_k=12
    )
    assert [hit.retrieval_rank for hit in fused] == [*range(1, 13)]


def test_embeddings_on_a_device_leave_words_to_the_engine(
    retriever: TwoStageRetriever, tiny_model: EDJEModel, named: set[int]
) -> None:
    options: dict[str, Any] = {"num_candidates": 12, "top_k": 12, "hybrid": True}
    other = TwoStageRetriever(
        retriever.collection, tiny_model, token_cache=None, first_stage="device"
    )
    for weight in (0.25, 1.0):
        here, there = (each.search(TEXT, words_weight=weight, **options)
                       for each in (retriever, other))  # fmt: skip
        assert [hit.image_id for hit in here] == [hit.image_id for hit in there]
    assert named <= found(asyncio.run(other.asearch(TEXT, words_weight=1, **options)))


def test_a_text_without_words_is_searched_for_by_looks(retriever: TwoStageRetriever) -> None:
    options: dict[str, Any] = {"num_candidates": 12, "top_k": 12}
    with_words = retriever.search("of the", hybrid=True, **options)
    assert [h.image_id for h in with_words] == [
        h.image_id for h in retriever.search("of the", **options)
    ]


def test_images_deleted_during_a_search_are_left_out(
    retriever: TwoStageRetriever, named: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if retriever.collection.index.engine == "edge":
        pytest.skip("tokens in side files are read without their points")
    collection = retriever.collection
    nearest, gone = collection.nearest, [numbered_id(min(named))]

    def then_deleted(*args: Any, **more: Any) -> Any:
        hits = nearest(*args, **more)
        collection.delete(gone)
        return hits

    monkeypatch.setattr(collection, "nearest", then_deleted)
    result = retriever.search(TEXT, hybrid=True, num_candidates=12, top_k=12)
    assert found(result) & named == named - {min(named)}
    assert not result.degraded


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hybrid": 1}, "True or False"),
        ({"words_weight": 1.0}, "hybrid=True"),
        ({"hybrid": True, "words_weight": 0}, "above 0"),
        ({"hybrid": True, "words_weight": float("nan")}, "above 0"),
        ({"hybrid": True, "words_weight": 1e9}, "at most"),
        ({"hybrid": True, "words_weight": "much"}, "above 0"),
        ({"hybrid": True, "adaptive": True}, "adaptive"),
        ({"fusion": "words"}, "hybrid=True"),
        ({"fusion_weights": (1, 1)}, "weighs nothing"),
        ({"hybrid": True, "fusion": "rerank", "fusion_weights": (1, 1)}, "weighs nothing"),
    ],
)
def test_wrong_options_are_refused(
    retriever: TwoStageRetriever, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        retriever.search(TEXT, **options)


def test_a_collection_without_text_fields_is_not_searched_by_words(
    tiny_model: EDJEModel, tmp_path: Path
) -> None:
    collection = ImageCollection.create(tmp_path, "images", tiny_model.contract())
    with TwoStageRetriever(collection, tiny_model) as retriever:
        with pytest.raises(ConfigError, match="edje-qdrant text-fields"):
            retriever.search(TEXT, hybrid=True)
        with SearchBatcher(retriever) as batcher, pytest.raises(ConfigError, match="text-fields"):
            batcher.submit(TEXT, hybrid=True)
