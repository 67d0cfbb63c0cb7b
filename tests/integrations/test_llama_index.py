from __future__ import annotations

import asyncio

import pytest
from rounding import float32_slack

pytest.importorskip("llama_index.core", reason="needs the extra llama-index")

from gallery_checks import TEXT, check_fields, other_order
from llama_index.core.schema import ImageNode, MetadataMode, NodeWithScore, QueryBundle, TextNode

from edje_qdrant.errors import ConfigError, TokensNotFoundError
from edje_qdrant.integrations.llama_index import EDJENodeReranker, EDJERetriever
from edje_qdrant.search.retriever import TwoStageRetriever


def test_nodes_hold_what_a_search_finds(retriever: TwoStageRetriever) -> None:
    plug = EDJERetriever(retriever, search_kwargs={"top_k": 5})
    nodes = plug.retrieve(TEXT)
    hits = retriever.search(TEXT, top_k=5)
    assert [n.node.node_id for n in nodes] == [hit.image_id for hit in hits]
    scores = [hit.score for hit in hits]
    assert [n.score for n in nodes] == pytest.approx(scores, abs=float32_slack(scores))
    for found, hit in zip(nodes, hits, strict=True):
        assert isinstance(found.node, ImageNode)
        assert found.node.image_path == hit.payload["path"]
        assert found.node.resolve_image() == hit.payload["path"]
        check_fields(found.node.metadata, hit)
        assert found.node.get_content(MetadataMode.LLM) == hit.payload["path"]
    again = asyncio.run(plug.aretrieve(QueryBundle(TEXT)))
    assert [n.node.node_id for n in again] == [n.node.node_id for n in nodes]
    texts = EDJERetriever(retriever, content_field="height").retrieve(TEXT)
    assert {n.text for n in texts} == {"40"}


def test_nodes_are_reranked(retriever: TwoStageRetriever) -> None:
    best = EDJERetriever(retriever, search_kwargs={"top_k": 12}).retrieve(TEXT)
    given = [
        NodeWithScore(
            node=TextNode(text=str(n), metadata={"image_id": found.node.node_id}), score=n
        )
        for n, found in other_order(best)
    ]
    reranker = EDJENodeReranker(scorer=retriever)
    reranked = reranker.postprocess_nodes(given, query_str=TEXT)
    assert [n.text for n in reranked] == [str(n) for n in range(12)]
    scores = [n.score for n in best]
    assert [n.score for n in reranked] == pytest.approx(scores, abs=float32_slack(scores))
    assert [n.score for n in given] == [n for n, _ in other_order(best)]
    again = asyncio.run(reranker.apostprocess_nodes(given, query_str=TEXT))
    assert [n.text for n in again] == [n.text for n in reranked]
    top = EDJENodeReranker(scorer=retriever, top_n=3)
    assert [n.text for n in top.postprocess_nodes(given, query_str=TEXT)] == ["0", "1", "2"]
    assert top.postprocess_nodes([], query_str=TEXT) == []
    assert top.class_name() == "EDJENodeReranker"


def test_what_cannot_be_reranked_is_refused(retriever: TwoStageRetriever) -> None:
    reranker = EDJENodeReranker(scorer=retriever)
    with pytest.raises(ConfigError, match="no query"):
        reranker.postprocess_nodes([])
    with pytest.raises(ConfigError, match="has no 'image_id'"):
        reranker.postprocess_nodes([NodeWithScore(node=TextNode(text="x"))], query_str=TEXT)
    unknown = "00000000-0000-4000-8000-000000000000"
    node = TextNode(text="x", metadata={"image_id": unknown})
    with pytest.raises(TokensNotFoundError, match=unknown):
        reranker.postprocess_nodes([NodeWithScore(node=node)], query_str=TEXT)
