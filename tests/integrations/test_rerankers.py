from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest
from rounding import float16_slack

pytest.importorskip("rerankers", reason="needs the extra rerankers")

from gallery_checks import TEXT, Gallery, check_refused_alike
from PIL import Image
from rerankers import Document

from edje_qdrant.errors import ConfigError, EdjeError, ImageReadError
from edje_qdrant.integrations.rerankers import EDJERanker
from edje_qdrant.search.retriever import TwoStageRetriever


@pytest.fixture
def expected(gallery: Gallery) -> list[float]:
    tokens = gallery.model.encode_images([Image.open(path) for path in gallery.paths]).tokens
    scores: list[float] = gallery.model.score(TEXT, tokens).tolist()
    return scores


def test_pictures_are_ranked(gallery: Gallery, expected: list[float]) -> None:
    ranker = EDJERanker(gallery.model)
    order = sorted(range(12), key=lambda row: -expected[row])
    results = ranker.rank(TEXT, [str(path) for path in gallery.paths])
    assert results.query == TEXT
    assert results.has_scores
    assert [result.doc_id for result in results] == order
    assert [result.rank for result in results] == [*range(1, 13)]
    slack = float16_slack(expected)
    assert [r.score for r in results] == pytest.approx([expected[n] for n in order], abs=slack)
    assert [r.document.image_path for r in results] == [str(gallery.paths[n]) for n in order]
    assert [r.doc_id for r in results.top_k(2)] == order[:2]
    again = asyncio.run(ranker.rank_async(TEXT, [str(path) for path in gallery.paths]))
    assert [r.doc_id for r in again] == order
    assert ranker.score(TEXT, str(gallery.paths[5])) == pytest.approx(expected[5], abs=slack)


def test_documents_of_all_kinds(
    gallery: Gallery, expected: list[float], retriever: TwoStageRetriever
) -> None:
    ranker = EDJERanker(gallery.model, collection=retriever)
    ids = {hit.payload["path"]: hit.image_id for hit in retriever.search(TEXT, top_k=12)}
    text = base64.b64encode(gallery.paths[1].read_bytes()).decode()
    docs = [
        Document(document_type="image", image_path=str(gallery.paths[0]), doc_id="zero"),
        Document(document_type="image", base64=text, metadata={"a": 1}),
        Document(document_type="image", doc_id=ids[str(gallery.paths[2])]),
        Image.open(gallery.paths[3]),
        ids[str(gallery.paths[4])],
    ]
    results = ranker.rank(TEXT, docs)
    known = {result.doc_id: result.score for result in results}
    assert set(known) == {"zero", 1, ids[str(gallery.paths[2])], 3, 4}
    for row, key in enumerate(["zero", 1, ids[str(gallery.paths[2])], 3, 4]):
        assert known[key] == pytest.approx(expected[row], abs=float16_slack(expected))
    assert results.get_result_by_docid(1).a == 1
    named = ranker.rank(TEXT, gallery.paths[:2], doc_ids=["x", "y"], metadata=[{"m": 0}, {"m": 1}])
    assert {(r.doc_id, r.metadata["m"]) for r in named} == {("x", 0), ("y", 1)}
    assert next(iter(ranker.rank(TEXT, gallery.paths[0]))).doc_id == 0
    assert list(ranker.rank(TEXT, [])) == []


def test_what_is_no_picture_is_refused(gallery: Gallery, tmp_path: Path) -> None:
    ranker = EDJERanker(gallery.model)
    with pytest.raises(ConfigError, match="not an image"):
        ranker.rank(TEXT, [Document("a text", doc_id=1)])
    with pytest.raises(ConfigError, match="not an image"):
        ranker.score(TEXT, Document(document_type="image"))
    with pytest.raises(ConfigError, match="1 doc_ids for 2 documents"):
        ranker.rank(TEXT, gallery.paths[:2], doc_ids=[1])
    with pytest.raises(ImageReadError, match="document 7"):
        ranker.rank(TEXT, [Document(document_type="image", base64="!", doc_id=7)])
    with pytest.raises(ImageReadError, match=r"none\.png"):
        ranker.rank(TEXT, [str(tmp_path / "none.png")])


def test_ids_that_are_passed_go_before_those_of_documents(
    gallery: Gallery, retriever: TwoStageRetriever
) -> None:
    ranker = EDJERanker(gallery.model, collection=retriever)
    (stored,) = (hit.image_id for hit in retriever.search(TEXT, top_k=1))
    docs = [
        Document(document_type="image", image_path=str(gallery.paths[0]), doc_id="own"),
        Document(document_type="image", doc_id=stored),
        Document(document_type="image", image_path=str(gallery.paths[1]), metadata={"a": 1}),
    ]
    results = ranker.rank(TEXT, docs, doc_ids=["x", "y", "z"], metadata=[{"m": n} for n in "123"])
    assert {(r.doc_id, r.metadata["m"]) for r in results} == {("x", "1"), ("y", "2"), ("z", "3")}
    assert [doc.doc_id for doc in docs] == ["own", stored, None]
    assert [doc.metadata for doc in docs] == [{}, {}, {"a": 1}]
    own = ranker.rank(TEXT, docs)
    assert {r.doc_id for r in own} == {"own", stored, 2}
    assert own.get_result_by_docid(2).a == 1
    twice = ranker.rank(TEXT, [docs[2], docs[2]], doc_ids=[5, 6])
    assert {r.doc_id for r in twice} == {5, 6}


def test_images_in_base64_are_read(gallery: Gallery, expected: list[float]) -> None:
    texts = [base64.b64encode(path.read_bytes()).decode() for path in gallery.paths]
    results = EDJERanker(gallery.model).rank(TEXT, texts)
    scores = {result.doc_id: result.score for result in results}
    slack = float16_slack(expected)
    assert [scores[n] for n in range(12)] == pytest.approx(expected, abs=slack)
    assert {result.document.base64 for result in results} == {*texts}
    assert {result.document.image_path for result in results} == {None}


def test_no_error_repeats_an_image(gallery: Gallery) -> None:
    ranker = EDJERanker(gallery.model)
    broken = base64.b64encode(b"\x89PNG" + 85_000 * b"\0").decode()
    for call in (
        lambda: ranker.rank(TEXT, [broken]),
        lambda: ranker.score(TEXT, broken),
        lambda: ranker.rank(TEXT, [Document(document_type="image", base64=broken)]),
        lambda: ranker.rank(TEXT, [Document(document_type="image", image_path=broken)]),
        lambda: ranker.rank(TEXT, gallery.paths[:1], doc_ids=broken),
        lambda: ranker.rank(broken, gallery.paths[:1], doc_ids=broken),
    ):
        with pytest.raises(EdjeError) as error:
            call()
        assert len(str(error.value)) < 1_000


def test_a_wrong_option_is_refused_alike_everywhere(gallery: Gallery) -> None:
    ranker, paths = EDJERanker(gallery.model), gallery.paths[:2]
    for options in ({"doc_ids": [1]}, {"doc_ids": "ab"}, {"metadata": [{}]}):
        check_refused_alike(
            ConfigError,
            lambda options=options: ranker.rank(TEXT, paths, **options),
            lambda options=options: ranker.rank_async(TEXT, paths, **options),
        )
    results = asyncio.run(ranker.rank_async(TEXT, paths, metadata=[{"m": 0}, {"m": 1}]))
    assert {r.metadata["m"] for r in results} == {0, 1}
