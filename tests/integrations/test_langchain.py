from __future__ import annotations

import asyncio
import math

import pytest
from rounding import float32_slack

pytest.importorskip("langchain_core", reason="needs the extra langchain")

from gallery_checks import TEXT, check_fields, check_refused_alike, other_order
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from pydantic import ValidationError

from edje_qdrant.errors import ConfigError, TokensNotFoundError, UnknownOptionError
from edje_qdrant.integrations.langchain import EDJEDocumentReranker, EDJERetriever
from edje_qdrant.model.calibration import Calibration
from edje_qdrant.search.retriever import TwoStageRetriever


def test_documents_hold_what_a_search_finds(retriever: TwoStageRetriever) -> None:
    plug = EDJERetriever(retriever=retriever, search_kwargs={"top_k": 5})
    documents = plug.invoke(TEXT)
    hits = retriever.search(TEXT, top_k=5)
    assert [d.id for d in documents] == [hit.image_id for hit in hits]
    assert [d.page_content for d in documents] == [hit.payload["path"] for hit in hits]
    for document, hit in zip(documents, hits, strict=True):
        check_fields(document.metadata, hit)
    assert asyncio.run(plug.ainvoke(TEXT)) == documents
    assert plug.batch([TEXT, TEXT]) == [documents, documents]


def test_options_of_a_call_go_before(retriever: TwoStageRetriever) -> None:
    plug = EDJERetriever(retriever=retriever, search_kwargs={"top_k": 5}, content_field="width")
    documents = plug.invoke(TEXT, top_k=2, filter={"width": 50})
    assert [d.page_content for d in documents] == ["50", "50"]
    assert plug.invoke(TEXT, filter={"width": 1}) == []
    assert asyncio.run(plug.ainvoke(TEXT, top_k=2)) == documents
    with pytest.raises(ConfigError, match="top_k is 0"):
        plug.invoke(TEXT, top_k=0)
    with pytest.raises(ValidationError):
        EDJERetriever(retriever="photos")  # type: ignore[arg-type]


def test_a_degraded_result_says_so(retriever: TwoStageRetriever) -> None:
    plug = EDJERetriever(retriever=retriever, search_kwargs={"budget_ms": 1e-3})
    (first, *_) = plug.invoke(TEXT)
    assert first.metadata["degraded"] is True
    assert "budget" in first.metadata["reason"]
    assert first.metadata["score"] is None


def test_documents_are_reranked(retriever: TwoStageRetriever) -> None:
    plug = EDJERetriever(retriever=retriever, search_kwargs={"top_k": 12})
    best = plug.invoke(TEXT)
    given = [
        Document(page_content=str(n), id=f"doc-{n}", metadata={"image_id": d.id, "mine": n})
        for n, d in other_order(best)
    ]
    reranker = EDJEDocumentReranker(scorer=retriever)
    reranked = reranker.compress_documents(given, TEXT)
    assert [d.metadata["image_id"] for d in reranked] == [d.id for d in best]
    assert [d.metadata["rank"] for d in reranked] == [*range(1, 13)]
    scores = [d.metadata["score"] for d in best]
    assert [d.metadata["score"] for d in reranked] == pytest.approx(
        scores, abs=float32_slack(scores)
    )
    assert [d.id for d in reranked] == [f"doc-{n}" for n in range(12)]
    assert all("score" not in document.metadata for document in given)
    assert asyncio.run(reranker.acompress_documents(given, TEXT)) == reranked
    top = EDJEDocumentReranker(scorer=retriever, top_n=3)
    assert top.compress_documents(given, TEXT) == reranked[:3]
    assert top.compress_documents([], TEXT) == []

    chain = plug | RunnableLambda(lambda found: top.compress_documents(found, TEXT))
    assert [d.id for d in chain.invoke(TEXT)] == [d.id for d in best[:3]]


def test_documents_without_a_picture_are_refused(retriever: TwoStageRetriever) -> None:
    reranker = EDJEDocumentReranker(scorer=retriever, id_key="picture")
    with pytest.raises(ConfigError, match=r"document 0 \(1 of 1 in all\) has no 'picture'"):
        reranker.compress_documents([Document(page_content="", metadata={"image_id": 1})], TEXT)
    unknown = "00000000-0000-4000-8000-000000000000"
    with pytest.raises(TokensNotFoundError, match=unknown):
        reranker.compress_documents(
            [Document(page_content="", metadata={"picture": unknown})], TEXT
        )
    with pytest.raises(ValidationError):
        EDJEDocumentReranker(scorer=3)  # type: ignore[arg-type]


def test_the_number_of_documents_has_langchains_name(retriever: TwoStageRetriever) -> None:
    for name in ("k", "top_k"):
        plug = EDJERetriever(retriever=retriever, **{name: 3})
        assert (plug.k, len(plug.invoke(TEXT))) == (3, 3)
        assert len(plug.invoke(TEXT, **{name: 1})) == 1
        assert len(asyncio.run(plug.ainvoke(TEXT, k=2))) == 2
    inside = EDJERetriever(retriever=retriever, search_kwargs={"k": 4})
    assert len(inside.invoke(TEXT)) == 4
    with pytest.raises(ConfigError, match="two names of one option"):
        inside.invoke(TEXT, k=2, top_k=2)
    with pytest.raises(ValidationError, match="give one"):
        EDJERetriever(retriever=retriever, k=3, search_kwargs={"top_k": 3})


def test_a_wrong_option_is_refused_alike_everywhere(retriever: TwoStageRetriever) -> None:
    plug = EDJERetriever(retriever=retriever)
    for options, kind in (
        ({"topk": 3}, UnknownOptionError),
        ({"k": 0}, ConfigError),
        ({"k": "3"}, ConfigError),
        ({"filter": 3}, ConfigError),
    ):
        check_refused_alike(
            kind,
            lambda options=options: plug.invoke(TEXT, **options),
            lambda options=options: plug.ainvoke(TEXT, **options),
        )
    with pytest.raises(ValidationError, match="topk"):
        EDJERetriever(retriever=retriever, search_kwargs={"topk": 3})
    with pytest.raises(ValidationError, match="top_k is 0"):
        EDJERetriever(retriever=retriever, k=0)
    for kind, given in (
        (EDJERetriever, {"retriever": retriever, "topk": 3}),
        (EDJERetriever, {"retriever": retriever, "k": 3, "top_k": 3}),
        (EDJEDocumentReranker, {"scorer": retriever, "top_k": 3}),
    ):
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            kind(**given)


def test_a_reranked_document_has_the_new_probability(
    retriever: TwoStageRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [Document(page_content="", metadata={"image_id": d.id, "probability": 0.5, "rank": 7})
             for d in EDJERetriever(retriever=retriever).invoke(TEXT)]  # fmt: skip
    reranker = EDJEDocumentReranker(scorer=retriever)
    assert all(d.metadata["probability"] is None for d in reranker.compress_documents(given, TEXT))
    calibration = Calibration(
        slope=2.0, intercept=0.5, cutoff=0.0, gap_slope=0.0, gap_intercept=0.0, spread=1.0,
        margin=None, queries=1, pairs=1, data="",
    )  # fmt: skip
    monkeypatch.setattr(retriever.model, "calibration", calibration)
    for rank, document in enumerate(reranker.compress_documents(given, TEXT), start=1):
        expected = 1 / (1 + math.exp(-2 * document.metadata["score"] - 0.5))
        assert document.metadata["probability"] == pytest.approx(expected)
        assert document.metadata["rank"] == rank
