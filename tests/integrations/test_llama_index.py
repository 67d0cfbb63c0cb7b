from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from rounding import float32_slack

pytest.importorskip("llama_index.core", reason="needs the extra llama-index")

from gallery_checks import TEXT, Gallery, check_fields, check_refused_alike, other_order
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.schema import ImageNode, MetadataMode, NodeWithScore, QueryBundle, TextNode

from edje_qdrant.errors import (
    CollectionLockedError,
    ConfigError,
    TokensNotFoundError,
    UnknownOptionError,
)
from edje_qdrant.images import image_file_id
from edje_qdrant.integrations.llama_index import EDJENodeReranker, EDJERetriever
from edje_qdrant.search.retriever import TwoStageRetriever

OTHER = "kites over the lake"


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


def test_a_reranked_node_has_the_new_score_and_rank(retriever: TwoStageRetriever) -> None:
    nodes = EDJERetriever(retriever, search_kwargs={"top_k": 12}).retrieve(TEXT)
    reranked = EDJENodeReranker(scorer=retriever).postprocess_nodes(nodes, query_str=OTHER)
    assert [n.node.node_id for n in reranked] != [n.node.node_id for n in nodes]
    for rank, found in enumerate(reranked, start=1):
        assert (found.metadata["score"], found.metadata["rank"]) == (found.score, rank)
        assert found.metadata["payload"]
        assert isinstance(found.node, ImageNode)
    assert [n.metadata["rank"] for n in nodes] == [*range(1, 13)]
    assert [n.metadata["score"] for n in nodes] == [n.score for n in nodes]
    bare = NodeWithScore(node=TextNode(text="x", metadata={"image_id": nodes[0].node.node_id}))
    (found,) = EDJENodeReranker(scorer=retriever).postprocess_nodes([bare], query_str=TEXT)
    for mode in (MetadataMode.LLM, MetadataMode.EMBED):  # no new words for a model
        assert found.node.get_content(mode) == bare.node.get_content(mode)


def test_reranking_emits_llama_indexs_events(retriever: TwoStageRetriever) -> None:
    class Events(BaseEventHandler):
        seen: list[Any] = []  # noqa: RUF012 - a field of pydantic

        def handle(self, event: Any, **_: Any) -> None:
            self.seen.append(event)

    events, debug = Events(), LlamaDebugHandler(print_trace_on_end=False)
    nodes = EDJERetriever(retriever, search_kwargs={"top_k": 5}).retrieve(TEXT)
    reranker = EDJENodeReranker(
        scorer=retriever, top_n=2, callback_manager=CallbackManager([debug])
    )
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(events)
    try:
        reranked = reranker.postprocess_nodes(nodes, query_str=TEXT)
        asyncio.run(reranker.apostprocess_nodes(nodes, query_str=TEXT))
    finally:
        dispatcher.event_handlers.remove(events)
    start, end, *again = events.seen
    assert isinstance(start, ReRankStartEvent)
    assert isinstance(end, ReRankEndEvent)
    assert (start.query.query_str, start.top_n, len(start.nodes)) == (TEXT, 2, 5)
    assert start.model_name == retriever.model.name_or_path
    assert [n.node_id for n in end.nodes] == [n.node_id for n in reranked]
    assert [type(event) for event in again] == [ReRankStartEvent, ReRankEndEvent]
    assert len(debug.get_event_pairs(CBEventType.RERANKING)) == 2


def test_a_reranker_is_written_and_read_back(gallery: Gallery) -> None:
    place = {"location": str(gallery.folder), "device": "cpu", "top_n": 3}
    named = EDJENodeReranker(**place, api_key="do not write this")
    nodes = [
        NodeWithScore(node=TextNode(text="x", metadata={"image_id": image_id}))
        for image_id in (image_file_id(path) for path in gallery.paths)
    ]

    def ranking(reranker: EDJENodeReranker) -> list[Any]:
        found = reranker.postprocess_nodes(nodes, query_str=TEXT)
        return [(each.node_id, each.score) for each in found]

    best = ranking(named)
    assert len(best) == 3
    for again in (
        EDJENodeReranker.from_dict(named.to_dict()),
        EDJENodeReranker.from_json(named.to_json()),
        pickle.loads(pickle.dumps(named)),
    ):
        assert "do not write this" not in repr(named) + named.to_json() + str(named.to_dict())
        assert again.to_dict() == named.to_dict()
        with pytest.raises(CollectionLockedError):
            gallery.open()
        again.close()
    assert b"do not write this" not in pickle.dumps(named)
    other = EDJENodeReranker(**place)  # shares the collection with `again` below, not with `named`
    named.close()
    assert ranking(other) == best
    assert ranking(pickle.loads(pickle.dumps(other))) == best
    other.close()


def test_a_reranker_of_an_open_collection_is_written_too(gallery: Gallery) -> None:
    with gallery.open() as opened:
        live = EDJENodeReranker(scorer=opened, id_key="picture")
        data = json.loads(live.to_json())
        assert data["location"] == str(gallery.folder)
        assert data["model"] == gallery.model.name_or_path
        again = EDJENodeReranker.from_dict(data)
        node = NodeWithScore(
            node=TextNode(text="x", metadata={"picture": image_file_id(gallery.paths[0])})
        )
        with pytest.raises(CollectionLockedError):
            again.postprocess_nodes([node], query_str=TEXT)
        (expected,) = live.postprocess_nodes([node], query_str=TEXT)
        sharing = EDJENodeReranker.from_dict(data, scorer=opened)
        assert sharing.postprocess_nodes([node], query_str=TEXT)[0].score == expected.score
        unpickled = pickle.loads(pickle.dumps(live))
    assert unpickled.postprocess_nodes([node], query_str=TEXT)[0].score == expected.score
    unpickled.close()


class OwnScorer:
    def score(self, text: str, image_ids: Sequence[Any]) -> NDArray[np.float32]:
        return np.arange(len(image_ids), dtype=np.float32)


def test_a_scorer_of_ones_own_cannot_be_named(retriever: TwoStageRetriever) -> None:
    own = EDJENodeReranker(scorer=OwnScorer())
    nodes = [NodeWithScore(node=TextNode(text=t, metadata={"image_id": t})) for t in "abc"]
    reranked = own.postprocess_nodes(nodes, query_str=TEXT)
    assert [n.text for n in reranked] == ["c", "b", "a"]
    with pytest.raises(ValidationError, match="pass scorer="):
        EDJENodeReranker.from_dict(own.to_dict())
    assert EDJENodeReranker.from_dict(own.to_dict(), scorer=OwnScorer()).name == "images"


def test_an_exported_model_cannot_be_named(
    retriever: TwoStageRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TwoStageRetriever, "model", property(lambda _: object()))
    assert EDJENodeReranker(scorer=retriever).to_dict()["location"] is None


def test_a_wrong_option_is_refused_alike_everywhere(retriever: TwoStageRetriever) -> None:
    with pytest.raises(UnknownOptionError, match="topk"):
        EDJERetriever(retriever, search_kwargs={"topk": 3})
    with pytest.raises(ConfigError, match="top_k is 0"):
        EDJERetriever(retriever, search_kwargs={"top_k": 0})
    with pytest.raises(ConfigError, match="retriever is a str"):
        EDJERetriever("photos")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="top_n is 0"):
        EDJENodeReranker(scorer=retriever, top_n=0)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        EDJENodeReranker(scorer=retriever, top_k=3)  # type: ignore[call-arg]
    plug, reranker = EDJERetriever(retriever), EDJENodeReranker(scorer=retriever)
    node = NodeWithScore(node=TextNode(text="x"))
    for calls in (
        (lambda: plug.retrieve("!"), lambda: plug.aretrieve("!")),
        (lambda: reranker.postprocess_nodes([]), lambda: reranker.apostprocess_nodes([])),
        (
            lambda: reranker.postprocess_nodes([node], query_str="a"),
            lambda: reranker.apostprocess_nodes([node], query_str="a"),
        ),
    ):
        check_refused_alike(ConfigError, *calls)
