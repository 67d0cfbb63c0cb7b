from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from qdrant_client import QdrantClient
from rounding import float32_slack

from edje_qdrant.demo.captions import truth_matrix
from edje_qdrant.demo.data import captions_for
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.scenes import draw_scenes
from edje_qdrant.errors import ConfigError, ContractMismatchError, ImageReadError, StoreError
from edje_qdrant.image_to_text.caption_collection import CaptionCollection, caption_ids
from edje_qdrant.image_to_text.caption_retriever import CaptionRetriever
from edje_qdrant.model import EDJEModel
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.types import ImageEncoding, Point

WriteImages = Callable[..., list[Path]]
TEXTS = [f"caption {number} of {word}" for number in range(10) for word in ("dogs", "kites", "b")]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, write_images: WriteImages) -> list[Path]:
    return write_images(tmp_path_factory.mktemp("asked"), 2)


@pytest.fixture(scope="module", params=["edge", "memory"])
def location(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: EDJEModel
) -> Any:
    """A place with a collection; nothing may be written to it."""
    edge = request.param == "edge"
    where = tmp_path_factory.mktemp("captions") if edge else QdrantClient(":memory:")
    with CaptionCollection.create(where, "captions", tiny_model.contract()) as collection:
        payloads = [{"number": number} for number in range(len(TEXTS))]
        ids = CaptionRetriever(collection, tiny_model).add(TEXTS, payloads)
        assert ids == caption_ids(TEXTS)
    return where


def test_the_ranking_is_what_both_stages_say(
    location: Any, tiny_model: EDJEModel, pictures: list[Path]
) -> None:
    with CaptionRetriever.open(location, model=tiny_model) as retriever:
        for path in pictures:
            encoding = tiny_model.encode_images([Image.open(path)])
            cosines = tiny_model.encode_texts(TEXTS) @ encoding.embeddings[0]
            candidates = np.argsort(-cosines)[:12]
            logits = tiny_model.score_pairs(
                [TEXTS[row] for row in candidates], np.repeat(encoding.tokens, 12, axis=0)
            )
            best = np.argsort(-logits)[:5]

            result = retriever.search(path, top_k=5, num_candidates=12)

            assert [hit.text for hit in result] == [TEXTS[candidates[row]] for row in best]
            assert [hit.payload for hit in result] == [{"number": candidates[row]} for row in best]
            assert [hit.caption_id for hit in result] == caption_ids([h.text for h in result])
            assert [hit.rank for hit in result] == [1, 2, 3, 4, 5]
            assert [hit.retrieval_rank for hit in result] == [row + 1 for row in best]
            np.testing.assert_allclose(
                [h.score for h in result], logits[best], atol=float32_slack(logits)
            )
            np.testing.assert_allclose(
                [h.retrieval_score for h in result],
                cosines[candidates[best]],
                atol=float32_slack(cosines),
            )
            assert result.timings.fetch == 0
            assert result.timings.total >= result.timings.rerank > 0
            assert result[0] == result.hits[0]
            assert result[1:3] == result.hits[1:3]
            assert retriever.search(encoding, top_k=5, num_candidates=12).hits == result.hits
            assert retriever.search(Image.open(path), top_k=5, num_candidates=12)[0] == result[0]


def test_a_filter_leaves_the_others_out(
    location: Any, tiny_model: EDJEModel, pictures: list[Path]
) -> None:
    with CaptionRetriever.open(location, model=tiny_model) as retriever:
        result = retriever.search(pictures[0], filter={"number": [3, 4, 28]})
        assert {hit.payload["number"] for hit in result} == {3, 4, 28}
        assert len(retriever.search(pictures[0], filter={"number": 99})) == 0
        assert len(retriever.search(pictures[0], top_k=100)) == len(TEXTS)


def test_what_cannot_be_searched_for_is_refused(
    location: Any, tiny_model: EDJEModel, pictures: list[Path], tmp_path: Path
) -> None:
    with CaptionRetriever.open(location, model=tiny_model) as retriever:
        for more, message in [
            ({"top_k": 0}, "top_k is 0"),
            ({"top_k": "3"}, "top_k is '3'; give a whole number, 1 or more$"),
            ({"num_candidates": 2.5}, "num_candidates is 2.5"),
            ({"num_candidates": 5, "top_k": 10}, "raise num_candidates"),
            ({"filter": ["number"]}, "filter is a list"),
        ]:
            with pytest.raises(ConfigError, match=message):
                retriever.search(pictures[0], **more)  # type: ignore[arg-type]
        with pytest.raises(ImageReadError, match=r"gone\.png"):
            retriever.search(tmp_path / "gone.png")


def test_captions_are_encoded_once_however_often_they_are_added(
    tmp_path: Path, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edje_qdrant.image_to_text.caption_retriever._TEXTS", 4)
    encoded: list[str] = []

    def counted(texts: list[str]) -> Any:
        encoded.extend(texts)
        return EDJEModel.encode_texts(tiny_model, texts)

    monkeypatch.setattr(tiny_model, "encode_texts", counted)
    with CaptionCollection.create(tmp_path, "captions", tiny_model.contract()) as collection:
        retriever = CaptionRetriever(collection, tiny_model)
        retriever.add(TEXTS[:6])
        ids = retriever.add(TEXTS[:11], [{"again": True}] * 11)
        assert sorted(encoded) == sorted(TEXTS[:11])
        assert ids == caption_ids(TEXTS[:11])
        assert collection.count() == 11
        assert collection.count({"again": True}) == 5
        with pytest.raises(ConfigError, match="has none"):
            retriever.add(["something new", "--"])
        with pytest.raises(ConfigError, match="1 payloads for 2 captions"):
            retriever.add(["something new", "b"], [{}])
        assert collection.count() == 11
    with CaptionCollection.open(tmp_path, "captions") as collection:
        assert collection.count() == 11


def test_equal_scores_keep_the_first_stages_order(
    location: Any, tiny_model: EDJEModel, pictures: list[Path]
) -> None:
    class Undecided(Reranker):
        def score_pairs(self, texts: Any, tokens: Any) -> Any:
            return np.zeros(len(texts), np.float32)

    with CaptionCollection.open(location, "captions") as collection:
        retriever = CaptionRetriever(collection, tiny_model, reranker=Undecided(tiny_model))
        assert retriever.collection is collection
        assert retriever.model is tiny_model
        ranks = [hit.retrieval_rank for hit in retriever.search(pictures[0], top_k=7)]
    assert ranks == [1, 2, 3, 4, 5, 6, 7]


def test_a_collection_is_opened_with_the_model_it_names(
    tmp_path: Path, tiny_folder: Path, tiny_model: EDJEModel, other_model: EDJEModel
) -> None:
    CaptionCollection.create(tmp_path, "captions", tiny_model.contract()).close()
    with CaptionRetriever.open(tmp_path, device="cpu") as retriever:
        assert retriever.model.name_or_path == str(tiny_folder)
    with CaptionRetriever.open(tmp_path, model=tiny_folder, device="cpu") as retriever:
        assert len(retriever.search(ImageEncoding(*encoded(tiny_model)))) == 0
    with pytest.raises(ContractMismatchError):
        CaptionRetriever.open(tmp_path, model=other_model)
    CaptionCollection.open(tmp_path, "captions").close()  # released after the refusal


def encoded(model: EDJEModel) -> Any:
    encoding = model.encode_images([Image.new("RGB", (20, 20))])
    return encoding.embeddings, encoding.tokens


def test_a_point_without_a_caption_is_named(tmp_path: Path, tiny_model: EDJEModel) -> None:
    with CaptionCollection.create(tmp_path, "captions", tiny_model.contract()) as collection:
        (caption_id,) = caption_ids(["a dog"])
        vector = tiny_model.encode_texts(["a dog"])[0]
        collection.index.upsert([Point(caption_id, vector, {"text": 7})])
        retriever = CaptionRetriever(collection, tiny_model)
        with pytest.raises(StoreError, match=f"the caption {caption_id} .* has no text"):
            retriever.search(ImageEncoding(*encoded(tiny_model)))


def test_scenes_find_captions_that_are_true_of_them(tmp_path: Path) -> None:
    model = EDJEModel.from_pretrained("demo", device="cpu")
    scenes = list(draw_scenes("test", 3, 60))
    captions = captions_for(scenes, 3)
    true = truth_matrix(captions, scenes[:12])
    row_of = {caption.text: row for row, caption in enumerate(captions)}
    with CaptionCollection.create(tmp_path, "captions", model.contract()) as collection:
        retriever = CaptionRetriever(collection, model)
        retriever.add([caption.text for caption in captions])
        right = [
            true[row_of[retriever.search(draw(scene), top_k=1, num_candidates=15)[0].text], number]
            for number, scene in enumerate(scenes[:12])
        ]
    assert sum(right) >= 10  # of 12; by chance, of 60 captions, one or two are true
