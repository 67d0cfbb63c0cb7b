from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_stand_in import StandIn
from numpy.typing import NDArray
from PIL import Image
from qdrant_client import QdrantClient
from rounding import float16_slack, float32_slack
from searching import make_collection

from edje_qdrant.collection.collection import ImageCollection, user_payload
from edje_qdrant.errors import (
    CheckpointError,
    CollectionLockedError,
    CollectionNotFoundError,
    ConfigError,
    ContractMismatchError,
    StoreError,
    TokensCorruptError,
    TokensNotFoundError,
)
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.model import EDJEModel
from edje_qdrant.rerank import token_loader as loader_module
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.search import ranking as ranking_module
from edje_qdrant.search import retriever as retriever_module
from edje_qdrant.search.results import SearchResult
from edje_qdrant.search.retriever import TwoStageRetriever

WriteImages = Callable[..., list[Path]]
TEXTS = ["a red square", "two dogs on a boat", "Kites over the lake!", "b"]
COUNT = 40


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, write_images: WriteImages) -> list[Path]:
    return write_images(tmp_path_factory.mktemp("pictures"), COUNT)


@pytest.fixture(scope="module")
def index(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: EDJEModel, pictures: list[Path]
) -> Path:
    """A folder with an ingested collection; nothing may be written to it."""
    folder = tmp_path_factory.mktemp("retriever") / "index"
    with ImageCollection.create(folder, "images", tiny_model.contract()) as collection:
        ingest_images(pictures, collection, tiny_model, progress=False)
    return folder


@pytest.fixture
def retriever(index: Path, tiny_model: EDJEModel) -> Iterator[TwoStageRetriever]:
    with TwoStageRetriever.open(index, model=tiny_model) as opened:
        yield opened


def ranking(result: SearchResult) -> list[tuple[Any, ...]]:
    return [(hit.rank, hit.image_id, hit.retrieval_rank, hit.payload) for hit in result]


def test_the_ranking_is_what_both_stages_say(
    retriever: TwoStageRetriever, tiny_model: EDJEModel, pictures: list[Path]
) -> None:
    encoding = tiny_model.encode_images([Image.open(path) for path in pictures])
    for text in TEXTS:
        cosines = encoding.embeddings @ tiny_model.encode_texts([text])[0]
        candidates = np.argsort(-cosines)[:12]
        logits = tiny_model.score(text, encoding.tokens[candidates])
        order = candidates[np.argsort(-logits)][:5]

        result = retriever.search(text, top_k=5, num_candidates=12)

        assert result.query == text
        assert [hit.payload["path"] for hit in result] == [str(pictures[row]) for row in order]
        assert [hit.rank for hit in result] == [1, 2, 3, 4, 5]
        places = {int(row): place for place, row in enumerate(candidates, start=1)}
        assert [hit.retrieval_rank for hit in result] == [places[int(row)] for row in order]
        np.testing.assert_allclose(
            [h.score for h in result], np.sort(logits)[::-1][:5], atol=float16_slack(logits)
        )
        np.testing.assert_allclose(
            [h.retrieval_score for h in result], cosines[order], atol=float32_slack(cosines)
        )


def test_hits_carry_the_payload_without_the_reserved_key(retriever: TwoStageRetriever) -> None:
    result = retriever.search("a red square")
    assert len(result) == 10
    for hit in result:
        assert set(hit.payload) == {"path", "width", "height", "file_size", "modified_at"}
        assert type(hit.score) is float
    assert not result.degraded


def test_a_batch_agrees_with_single_searches(retriever: TwoStageRetriever) -> None:
    batch = retriever.search_batch(TEXTS, top_k=7, num_candidates=30)
    assert [result.query for result in batch] == TEXTS
    for text, together in zip(TEXTS, batch, strict=True):
        alone = retriever.search(text, top_k=7, num_candidates=30)
        assert ranking(together) == ranking(alone)
        scores = [[hit.score for hit in result] for result in (together, alone)]
        np.testing.assert_allclose(*scores, atol=float32_slack(*scores))


def test_a_batch_agrees_with_itself_cut_into_steps(
    index: Path, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TwoStageRetriever.open(index, model=tiny_model) as retriever:
        whole = retriever.search_batch(TEXTS)
    monkeypatch.setattr(retriever_module, "_QUERIES", 3)
    monkeypatch.setattr(loader_module, "_TOKEN_BYTES", 7 * 4 * 16 * 2)  # seven pairs
    with TwoStageRetriever.open(index, model=tiny_model) as retriever:
        assert [ranking(r) for r in retriever.search_batch(TEXTS)] == [ranking(r) for r in whole]


def test_no_texts_give_no_results(retriever: TwoStageRetriever) -> None:
    assert retriever.search_batch([]) == []


def test_fewer_pictures_than_asked_for_are_all_of_them(retriever: TwoStageRetriever) -> None:
    result = retriever.search("a red square", top_k=100, num_candidates=1000)
    assert len(result) == COUNT
    assert {hit.retrieval_rank for hit in result} == set(range(1, COUNT + 1))


@pytest.mark.parametrize("location", ["edge", ":memory:"])
def test_an_empty_collection_gives_an_empty_result(
    tmp_path: Path, tiny_model: EDJEModel, location: str
) -> None:
    place = tmp_path if location == "edge" else location
    with ImageCollection.create(place, "images", tiny_model.contract()) as collection:
        result = TwoStageRetriever(collection, tiny_model).search("a red square")
    assert len(result) == 0
    assert result.timings.total >= 0


def test_equal_scores_keep_the_first_stages_order(index: Path, tiny_model: EDJEModel) -> None:
    class Undecided(Reranker):
        def score_pairs(self, texts: Any, tokens: NDArray[np.float16]) -> NDArray[np.float32]:
            return np.zeros(len(texts), np.float32)

    with ImageCollection.open(index, "images") as collection:
        retriever = TwoStageRetriever(collection, tiny_model, reranker=Undecided(tiny_model))
        result = retriever.search("a red square", top_k=20, num_candidates=40)
    assert [hit.retrieval_rank for hit in result] == list(range(1, 21))


def test_timings_cover_every_stage(retriever: TwoStageRetriever) -> None:
    timings = retriever.search("a red square").timings
    stages = timings.as_dict()
    assert set(stages) == {"encode", "retrieve", "fetch", "rerank", "total"}
    assert all(ms > 0 for ms in stages.values())


@pytest.mark.parametrize(
    ("text", "numbers", "words"),
    [
        ("", {}, "no word"),
        (" \n\t", {}, "no word"),
        ("?!...", {}, "no word"),
        (None, {}, "text"),
        (b"a cat", {}, "text"),
        ("a cat", {"top_k": 0}, "top_k is 0"),
        ("a cat", {"top_k": -3}, "top_k is -3"),
        ("a cat", {"top_k": 2.0}, "whole number"),
        ("a cat", {"top_k": True}, "whole number"),
        ("a cat", {"num_candidates": "9"}, "whole number"),
        ("a cat", {"top_k": 5, "num_candidates": 4}, "num_candidates is 4"),
        ("a cat", {"top_k": 101}, "raise num_candidates"),
    ],
)
def test_what_cannot_be_searched_for_is_refused(
    retriever: TwoStageRetriever, text: Any, numbers: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        retriever.search(text, **numbers)
    with pytest.raises(ConfigError, match=words):
        retriever.search_batch(["a dog", text], **numbers)


def test_one_text_is_no_batch(retriever: TwoStageRetriever) -> None:
    with pytest.raises(ConfigError, match="list of texts"):
        retriever.search_batch("a cat")


def test_the_model_is_the_one_the_contract_names(index: Path, tiny_folder: Path) -> None:
    with TwoStageRetriever.open(index, device="cpu") as retriever:
        assert retriever.model.name_or_path == str(tiny_folder.resolve())
        assert retriever.collection.count() == COUNT
    with TwoStageRetriever.open(str(index), model=str(tiny_folder), device="cpu") as retriever:
        assert len(retriever.search("a cat")) == 10


def test_a_model_that_is_gone_or_unnamed_is_asked_for(
    tmp_path: Path, tiny_folder: Path, tiny_model: EDJEModel
) -> None:
    moved = tmp_path / "model"
    shutil.copytree(tiny_folder, moved)
    contract = EDJEModel.from_pretrained(moved, device="cpu").contract()
    ImageCollection.create(tmp_path, "named", contract).close()
    ImageCollection.create(tmp_path, "unnamed", replace(contract, model=None)).close()
    (moved / "config.json").unlink()
    with pytest.raises(CheckpointError, match="model=") as caught:
        TwoStageRetriever.open(tmp_path, "named")
    assert str(moved) in str(caught.value)
    with pytest.raises(ConfigError, match="model="):
        TwoStageRetriever.open(tmp_path, "unnamed")
    # Nothing was left open.
    TwoStageRetriever.open(tmp_path, "named", model=tiny_model).close()
    TwoStageRetriever.open(tmp_path, "unnamed", model=tiny_model).close()


def test_another_model_is_refused(
    index: Path, tiny_model: EDJEModel, other_model: EDJEModel
) -> None:
    with pytest.raises(ContractMismatchError) as caught:
        TwoStageRetriever.open(index, model=other_model)
    assert "encoder_revision" in caught.value.found
    TwoStageRetriever.open(index, model=tiny_model).close()  # its lock was released


def test_collections_that_are_not_there_or_taken_are_named(
    index: Path, tmp_path: Path, tiny_model: EDJEModel, retriever: TwoStageRetriever
) -> None:
    with pytest.raises(CollectionNotFoundError, match="images"):
        TwoStageRetriever.open(index, "other", model=tiny_model)
    with pytest.raises(CollectionNotFoundError):
        TwoStageRetriever.open(tmp_path / "nowhere", model=tiny_model)
    with pytest.raises(CollectionLockedError):
        TwoStageRetriever.open(index, model=tiny_model)


def test_tokens_that_are_gone_end_the_search(
    tmp_path: Path, tiny_model: EDJEModel, pictures: list[Path]
) -> None:
    with ImageCollection.create(tmp_path, "images", tiny_model.contract()) as collection:
        ingest_images(pictures[:10], collection, tiny_model, progress=False)
    (side_file,) = (p for p in (tmp_path / "images" / "tokens").iterdir() if p.stat().st_size > 999)
    with side_file.open("r+b") as file:
        file.truncate(side_file.stat().st_size - 5 * 4 * 16 * 2)  # five of ten images
    with (
        TwoStageRetriever.open(tmp_path, model=tiny_model) as retriever,
        pytest.raises(TokensNotFoundError) as caught,
    ):
        retriever.search("a cat")
    assert len(caught.value.image_ids) == 5


def test_both_engines_and_both_token_places_give_the_same_ranking(
    tmp_path: Path, retriever: TwoStageRetriever, tiny_model: EDJEModel, pictures: list[Path]
) -> None:
    contract = tiny_model.contract()
    client = QdrantClient(":memory:")
    others = {
        "edge, payload": ImageCollection.create(tmp_path, "payload", contract, tokens="payload"),
        "qdrant, payload": ImageCollection.create(client, "payload", contract),
        "qdrant, file": ImageCollection.create(
            client, "file", contract, tokens="file", tokens_folder=tmp_path / "tokens"
        ),
    }
    expected = retriever.search_batch(TEXTS, top_k=10, num_candidates=25)
    for what, collection in others.items():
        ingest_images(pictures, collection, tiny_model, progress=False)
        with TwoStageRetriever(collection, tiny_model) as other:
            found = other.search_batch(TEXTS, top_k=10, num_candidates=25)
        assert [ranking(r) for r in found] == [ranking(r) for r in expected], what


@pytest.fixture(params=["edge-file", "edge-payload", "memory-payload"])
def spoilt(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_model: EDJEModel, index: Path
) -> Iterator[TwoStageRetriever]:
    """A collection of twenty images of its own, for tests to damage."""
    engine, tokens = request.param.split("-")
    place = tmp_path / "index" if engine == "edge" else ":memory:"
    contract = tiny_model.contract()
    collection = ImageCollection.create(place, "images", contract, tokens=tokens)
    with ImageCollection.open(index, "images") as whole:
        twenty = next(whole.index.scroll(batch_size=20))
        ids = [point.id for point in twenty]
        payloads = [user_payload(point.payload) for point in twenty]
        collection.add(ids, whole.encodings(ids), payloads)
    with TwoStageRetriever(collection, tiny_model) as opened:
        yield opened


def damage(retriever: TwoStageRetriever, *image_ids: str) -> None:
    """Let points state another checksum than their tokens have."""
    for image_id, payload in retriever.collection.index.retrieve(image_ids).items():
        reference = {**payload["_edje"], "checksum": "0" * 16}
        retriever.collection.index.set_payload({image_id: {"_edje": reference}})


def lose(retriever: TwoStageRetriever, *image_ids: str) -> None:
    """Let points not say where their tokens are."""
    retriever.collection.index.set_payload({image_id: {"_edje": {}} for image_id in image_ids})


def places(result: SearchResult) -> list[tuple[str, float | None]]:
    return [(hit.image_id, None if hit.score is None else round(hit.score, 4)) for hit in result]


def expected_places(result: SearchResult, unread: set[str]) -> list[tuple[str, float | None]]:
    """Return what `result` would be if these had no score and kept their first-stage place."""
    first = sorted(result, key=lambda hit: hit.retrieval_rank)
    scored = [hit for hit in result if hit.image_id not in unread]
    return [
        (hit.image_id, None)
        if hit.image_id in unread
        else ((best := scored.pop(0)).image_id, round(best.score or 0.0, 4))
        for hit in first
    ]


@pytest.mark.parametrize("ranks", [[1], [7], [4, 9, 20], list(range(1, 20))])
def test_pictures_that_cannot_be_scored_keep_their_first_stage_place(
    spoilt: TwoStageRetriever, ranks: list[int]
) -> None:
    whole = spoilt.search(TEXTS[0], top_k=20)
    assert not whole.degraded
    assert whole.reason is None
    assert [h.retrieval_rank for h in whole] != sorted(h.retrieval_rank for h in whole)
    unread = [hit.image_id for hit in whole if hit.retrieval_rank in ranks]
    damage(spoilt, *unread[::2])
    lose(spoilt, *unread[1::2])
    result = spoilt.search(TEXTS[0], top_k=20, on_missing="first_stage")
    assert places(result) == expected_places(whole, {*unread})
    assert [hit.rank for hit in result] == list(range(1, 21))
    assert all(h.rank == h.retrieval_rank for h in result if h.score is None)
    assert {h.image_id: h.payload for h in result} == {h.image_id: h.payload for h in whole}
    assert result.degraded
    assert result.reason is not None
    assert result.reason.startswith(f"{len(ranks)} of 20 candidates could not be scored")
    # The first few, and reasons are those that the candidates themselves have.
    assert any(image_id in result.reason for image_id in unread)
    assert (
        places(spoilt.search(TEXTS[0], top_k=3, num_candidates=20, on_missing="first_stage"))
        == (places(result)[:3])
    )


def test_where_none_can_be_scored_the_first_stage_stands(spoilt: TwoStageRetriever) -> None:
    whole = spoilt.search(TEXTS[0], top_k=20)
    lose(spoilt, *(hit.image_id for hit in whole))
    result = spoilt.search(TEXTS[0], on_missing="first_stage")
    first = sorted(whole, key=lambda hit: hit.retrieval_rank)
    assert places(result) == [(hit.image_id, None) for hit in first[:10]]
    assert result.reason is not None
    assert result.reason.startswith("20 of 20 candidates")


def test_without_leave_they_end_the_search_and_are_named(spoilt: TwoStageRetriever) -> None:
    whole = spoilt.search(TEXTS[0], top_k=20)
    a, b = whole[3].image_id, whole[8].image_id
    damage(spoilt, a, b)
    for more in ({}, {"on_missing": "error"}):
        with pytest.raises(TokensCorruptError) as caught:
            spoilt.search(TEXTS[0], **more)
        assert {*caught.value.image_ids} == {a, b}
        assert a in str(caught.value)
    # Those that are no candidates are nobody's concern.
    low = max(whole, key=lambda hit: hit.retrieval_rank)
    if low.image_id not in (a, b):
        best = min(hit.retrieval_rank for hit in whole if hit.image_id in (a, b))
        if best > 1:
            assert len(spoilt.search(TEXTS[0], top_k=best - 1, num_candidates=best - 1)) == best - 1
    lose(spoilt, b)
    with pytest.raises(TokensNotFoundError) as missing:
        spoilt.search_batch(TEXTS)
    assert missing.value.image_ids == (b,)


def test_in_a_batch_only_the_query_concerned_is_degraded(
    spoilt: TwoStageRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = spoilt.search_batch(TEXTS, top_k=2, num_candidates=2)
    found = [{hit.image_id for hit in result} for result in whole]
    concerned, image_id = next(
        (number, image_id)
        for number, own in enumerate(found)
        for image_id in sorted(own)
        if not any(image_id in other for other in found[:number] + found[number + 1 :])
    )
    damage(spoilt, image_id)
    for pairs_at_once in (1000, 3, 1):
        monkeypatch.setattr(spoilt._scorer, "pairs_at_once", pairs_at_once)
        results = spoilt.search_batch(TEXTS, top_k=2, num_candidates=2, on_missing="first_stage")
        for number, result in enumerate(results):
            assert result.degraded == (number == concerned)
            if number == concerned:
                assert places(result) == expected_places(whole[number], {image_id})
                assert result.reason is not None
                assert result.reason.startswith("1 of 2 candidates")
            else:
                assert places(result) == places(whole[number])
                assert result.reason == whole[number].reason  # a text that is cut says so


def test_a_picture_that_two_queries_found_is_unread_in_both(spoilt: TwoStageRetriever) -> None:
    whole = spoilt.search_batch(TEXTS, top_k=20)
    image_id = whole[0][0].image_id
    damage(spoilt, image_id)
    results = spoilt.search_batch(TEXTS, top_k=20, on_missing="first_stage")
    for ours, theirs in zip(results, whole, strict=True):
        assert places(ours) == expected_places(theirs, {image_id})


def test_a_side_file_that_is_lost_is_no_end_where_it_is_allowed(
    tmp_path: Path, tiny_model: EDJEModel, pictures: list[Path]
) -> None:
    with ImageCollection.create(tmp_path, "images", tiny_model.contract()) as collection:
        ingest_images(pictures[:10], collection, tiny_model, progress=False)
    (side_file,) = (tmp_path / "images" / "tokens").glob("tokens-*.bin")
    side_file.unlink()
    with pytest.raises(TokensNotFoundError):
        ImageCollection.open(tmp_path, "images")
    with TwoStageRetriever(
        ImageCollection.open(tmp_path, "images", for_repair=True), tiny_model
    ) as retriever:
        result = retriever.search("a cat", on_missing="first_stage")
        assert [hit.score for hit in result] == [None] * 10
        with pytest.raises(TokensNotFoundError):
            retriever.search("a cat")


def test_trouble_with_the_store_itself_ends_the_search_always(spoilt: TwoStageRetriever) -> None:
    spoilt.collection.close()
    with pytest.raises(StoreError, match="closed"):
        spoilt.search("a cat", on_missing="first_stage")


def test_what_on_missing_takes(retriever: TwoStageRetriever) -> None:
    for wrong in ("ignore", None, True):
        with pytest.raises(ConfigError, match="on_missing"):
            retriever.search("a cat", on_missing=wrong)  # type: ignore[arg-type]
    whole = retriever.search("a cat")
    same = retriever.search("a cat", on_missing="first_stage")
    assert places(same) == places(whole)
    assert not same.degraded


def test_hits_are_made_when_they_are_used(
    retriever: TwoStageRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = retriever.search(TEXTS[0], top_k=COUNT)
    made: list[Any] = []

    def noted(payload: Any) -> dict[str, Any]:
        made.append(payload)
        return user_payload(payload)

    monkeypatch.setattr(ranking_module, "user_payload", noted)
    result = retriever.search(TEXTS[0], top_k=3)
    assert len(made) == 3
    assert len(result.remaining) == COUNT - 3
    assert result.remaining == whole.hits[3:]
    second = result.next(4)
    assert isinstance(second.hits, tuple)
    assert second.hits == whole.hits[3:7]
    copied = pickle.loads(pickle.dumps(result))
    assert (copied.hits, copied.remaining) == (result.hits, whole.hits[3:])
    assert copied == result
    assert copy.deepcopy(result) == result
    assert repr(result.remaining) == repr(whole.hits[3:])


def test_a_page_can_be_turned_after_the_collection_is_closed(
    index: Path, tiny_model: EDJEModel
) -> None:
    with TwoStageRetriever.open(index, model=tiny_model) as opened:
        whole = opened.search(TEXTS[0], top_k=COUNT)
        result = opened.search(TEXTS[0], top_k=3)
    assert result.next(COUNT).hits == whole.hits[3:]
    assert result.cursor is not None


@pytest.mark.parametrize("compressed", [False, True])
def test_tokens_come_from_a_server_as_they_are(tiny_model: EDJEModel, compressed: bool) -> None:
    with StandIn() as server:
        make_collection(server.url, tiny_model, compress_reads=compressed).close()
        with TwoStageRetriever.open(
            server.url, model=tiny_model, compress_reads=compressed
        ) as retriever:
            retriever.search("a red square")
        accepted = {headers["accept-encoding"] for headers in server.headers}
    assert ({"identity"} == accepted) is not compressed
