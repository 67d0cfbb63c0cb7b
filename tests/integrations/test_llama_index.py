from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from gallery_checks import TEXT, Gallery, check_fields, check_refused_alike, other_order
from lazy import Lazy
from numpy.typing import NDArray
from pydantic import ValidationError
from rounding import float32_slack

from edje_qdrant.errors import (
    CollectionLockedError,
    ConfigError,
    TokensNotFoundError,
    UnknownOptionError,
)
from edje_qdrant.images import image_file_id
from edje_qdrant.search.retriever import TwoStageRetriever

if find_spec("llama_index") is None:
    pytest.skip("needs the extra llama-index", allow_module_level=True)

callbacks = Lazy("llama_index.core.callbacks")
instrumentation = Lazy("llama_index.core.instrumentation")
handlers = Lazy("llama_index.core.instrumentation.event_handlers")
reranks = Lazy("llama_index.core.instrumentation.events.rerank")
schema = Lazy("llama_index.core.schema")
ours = Lazy("edje_qdrant.integrations.llama_index")

OTHER = "kites over the lake"


def test_nodes_hold_what_a_search_finds(retriever: TwoStageRetriever) -> None:
    plug = ours.EDJERetriever(retriever, search_kwargs={"top_k": 5})
    nodes = plug.retrieve(TEXT)
    hits = retriever.search(TEXT, top_k=5)
    assert [n.node.node_id for n in nodes] == [hit.image_id for hit in hits]
    scores = [hit.score for hit in hits]
    assert [n.score for n in nodes] == pytest.approx(scores, abs=float32_slack(scores))
    for found, hit in zip(nodes, hits, strict=True):
        assert isinstance(found.node, schema.ImageNode)
        assert found.node.image_path == hit.payload["path"]
        assert found.node.resolve_image() == hit.payload["path"]
        check_fields(found.node.metadata, hit)
        assert found.node.get_content(schema.MetadataMode.LLM) == hit.payload["path"]
    again = asyncio.run(plug.aretrieve(schema.QueryBundle(TEXT)))
    assert [n.node.node_id for n in again] == [n.node.node_id for n in nodes]
    texts = ours.EDJERetriever(retriever, content_field="height").retrieve(TEXT)
    assert {n.text for n in texts} == {"40"}


def test_nodes_are_reranked(retriever: TwoStageRetriever) -> None:
    best = ours.EDJERetriever(retriever, search_kwargs={"top_k": 12}).retrieve(TEXT)
    given = [
        schema.NodeWithScore(
            node=schema.TextNode(text=str(n), metadata={"image_id": found.node.node_id}), score=n
        )
        for n, found in other_order(best)
    ]
    reranker = ours.EDJENodeReranker(scorer=retriever)
    reranked = reranker.postprocess_nodes(given, query_str=TEXT)
    assert [n.text for n in reranked] == [str(n) for n in range(12)]
    scores = [n.score for n in best]
    assert [n.score for n in reranked] == pytest.approx(scores, abs=float32_slack(scores))
    assert [n.score for n in given] == [n for n, _ in other_order(best)]
    again = asyncio.run(reranker.apostprocess_nodes(given, query_str=TEXT))
    assert [n.text for n in again] == [n.text for n in reranked]
    top = ours.EDJENodeReranker(scorer=retriever, top_n=3)
    assert [n.text for n in top.postprocess_nodes(given, query_str=TEXT)] == ["0", "1", "2"]
    assert top.postprocess_nodes([], query_str=TEXT) == []
    assert top.class_name() == "EDJENodeReranker"


def test_what_cannot_be_reranked_is_refused(retriever: TwoStageRetriever) -> None:
    reranker = ours.EDJENodeReranker(scorer=retriever)
    with pytest.raises(ConfigError, match="no query"):
        reranker.postprocess_nodes([])
    with pytest.raises(ConfigError, match="has no 'image_id'"):
        reranker.postprocess_nodes(
            [schema.NodeWithScore(node=schema.TextNode(text="x"))], query_str=TEXT
        )
    unknown = "00000000-0000-4000-8000-000000000000"
    node = schema.TextNode(text="x", metadata={"image_id": unknown})
    with pytest.raises(TokensNotFoundError, match=unknown):
        reranker.postprocess_nodes([schema.NodeWithScore(node=node)], query_str=TEXT)


def test_a_reranked_node_has_the_new_score_and_rank(retriever: TwoStageRetriever) -> None:
    nodes = ours.EDJERetriever(retriever, search_kwargs={"top_k": 12}).retrieve(TEXT)
    reranked = ours.EDJENodeReranker(scorer=retriever).postprocess_nodes(nodes, query_str=OTHER)
    assert [n.node.node_id for n in reranked] != [n.node.node_id for n in nodes]
    for rank, found in enumerate(reranked, start=1):
        assert (found.metadata["score"], found.metadata["rank"]) == (found.score, rank)
        assert found.metadata["payload"]
        assert isinstance(found.node, schema.ImageNode)
    assert [n.metadata["rank"] for n in nodes] == [*range(1, 13)]
    assert [n.metadata["score"] for n in nodes] == [n.score for n in nodes]
    bare = schema.NodeWithScore(
        node=schema.TextNode(text="x", metadata={"image_id": nodes[0].node.node_id})
    )
    (found,) = ours.EDJENodeReranker(scorer=retriever).postprocess_nodes([bare], query_str=TEXT)
    for mode in (schema.MetadataMode.LLM, schema.MetadataMode.EMBED):  # no new words for a model
        assert found.node.get_content(mode) == bare.node.get_content(mode)


def test_reranking_emits_llama_indexs_events(retriever: TwoStageRetriever) -> None:
    class Events(handlers.BaseEventHandler):
        seen: list[Any] = []  # noqa: RUF012 - a field of pydantic

        def handle(self, event: Any, **_: Any) -> None:
            self.seen.append(event)

    events, debug = Events(), callbacks.LlamaDebugHandler(print_trace_on_end=False)
    nodes = ours.EDJERetriever(retriever, search_kwargs={"top_k": 5}).retrieve(TEXT)
    reranker = ours.EDJENodeReranker(
        scorer=retriever, top_n=2, callback_manager=callbacks.CallbackManager([debug])
    )
    dispatcher = instrumentation.get_dispatcher()
    dispatcher.add_event_handler(events)
    try:
        reranked = reranker.postprocess_nodes(nodes, query_str=TEXT)
        asyncio.run(reranker.apostprocess_nodes(nodes, query_str=TEXT))
    finally:
        dispatcher.event_handlers.remove(events)
    start, end, *again = events.seen
    assert isinstance(start, reranks.ReRankStartEvent)
    assert isinstance(end, reranks.ReRankEndEvent)
    assert (start.query.query_str, start.top_n, len(start.nodes)) == (TEXT, 2, 5)
    assert start.model_name == retriever.model.name_or_path
    assert [n.node_id for n in end.nodes] == [n.node_id for n in reranked]
    assert [type(event) for event in again] == [reranks.ReRankStartEvent, reranks.ReRankEndEvent]
    assert len(debug.get_event_pairs(callbacks.CBEventType.RERANKING)) == 2


def test_a_reranker_is_written_and_read_back(gallery: Gallery) -> None:
    place = {"location": str(gallery.folder), "device": "cpu", "top_n": 3}
    named = ours.EDJENodeReranker(**place, api_key="do not write this")
    nodes = [
        schema.NodeWithScore(node=schema.TextNode(text="x", metadata={"image_id": image_id}))
        for image_id in (image_file_id(path) for path in gallery.paths)
    ]

    def ranking(reranker: ours.EDJENodeReranker) -> list[Any]:
        found = reranker.postprocess_nodes(nodes, query_str=TEXT)
        return [(each.node_id, each.score) for each in found]

    best = ranking(named)
    assert len(best) == 3
    for again in (
        ours.EDJENodeReranker.from_dict(named.to_dict()),
        ours.EDJENodeReranker.from_json(named.to_json()),
        pickle.loads(pickle.dumps(named)),
    ):
        assert "do not write this" not in repr(named) + named.to_json() + str(named.to_dict())
        assert again.to_dict() == named.to_dict()
        with pytest.raises(CollectionLockedError):
            gallery.open()
        again.close()
    assert b"do not write this" not in pickle.dumps(named)
    other = ours.EDJENodeReranker(
        **place
    )  # shares the collection with `again` below, not with `named`
    named.close()
    assert ranking(other) == best
    assert ranking(pickle.loads(pickle.dumps(other))) == best
    other.close()


def test_a_reranker_of_an_open_collection_is_written_too(gallery: Gallery) -> None:
    with gallery.open() as opened:
        live = ours.EDJENodeReranker(scorer=opened, id_key="picture")
        data = json.loads(live.to_json())
        assert data["location"] == str(gallery.folder)
        assert data["model"] == gallery.model.name_or_path
        again = ours.EDJENodeReranker.from_dict(data)
        node = schema.NodeWithScore(
            node=schema.TextNode(text="x", metadata={"picture": image_file_id(gallery.paths[0])})
        )
        with pytest.raises(CollectionLockedError):
            again.postprocess_nodes([node], query_str=TEXT)
        (expected,) = live.postprocess_nodes([node], query_str=TEXT)
        sharing = ours.EDJENodeReranker.from_dict(data, scorer=opened)
        assert sharing.postprocess_nodes([node], query_str=TEXT)[0].score == expected.score
        unpickled = pickle.loads(pickle.dumps(live))
    assert unpickled.postprocess_nodes([node], query_str=TEXT)[0].score == expected.score
    unpickled.close()


class OwnScorer:
    def score(self, text: str, image_ids: Sequence[Any]) -> NDArray[np.float32]:
        return np.arange(len(image_ids), dtype=np.float32)


def test_a_scorer_of_ones_own_cannot_be_named(retriever: TwoStageRetriever) -> None:
    own = ours.EDJENodeReranker(scorer=OwnScorer())
    nodes = [
        schema.NodeWithScore(node=schema.TextNode(text=t, metadata={"image_id": t})) for t in "abc"
    ]
    reranked = own.postprocess_nodes(nodes, query_str=TEXT)
    assert [n.text for n in reranked] == ["c", "b", "a"]
    with pytest.raises(ValidationError, match="pass scorer="):
        ours.EDJENodeReranker.from_dict(own.to_dict())
    assert ours.EDJENodeReranker.from_dict(own.to_dict(), scorer=OwnScorer()).name == "images"


def test_an_exported_model_cannot_be_named(
    retriever: TwoStageRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TwoStageRetriever, "model", property(lambda _: object()))
    assert ours.EDJENodeReranker(scorer=retriever).to_dict()["location"] is None


def test_a_wrong_option_is_refused_alike_everywhere(retriever: TwoStageRetriever) -> None:
    with pytest.raises(UnknownOptionError, match="topk"):
        ours.EDJERetriever(retriever, search_kwargs={"topk": 3})
    with pytest.raises(ConfigError, match="top_k is 0"):
        ours.EDJERetriever(retriever, search_kwargs={"top_k": 0})
    with pytest.raises(ConfigError, match="retriever is a str"):
        ours.EDJERetriever("photos")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="top_n is 0"):
        ours.EDJENodeReranker(scorer=retriever, top_n=0)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        ours.EDJENodeReranker(scorer=retriever, top_k=3)  # type: ignore[call-arg]
    plug, reranker = ours.EDJERetriever(retriever), ours.EDJENodeReranker(scorer=retriever)
    node = schema.NodeWithScore(node=schema.TextNode(text="x"))
    for calls in (
        (lambda: plug.retrieve("!"), lambda: plug.aretrieve("!")),
        (lambda: reranker.postprocess_nodes([]), lambda: reranker.apostprocess_nodes([])),
        (
            lambda: reranker.postprocess_nodes([node], query_str="a"),
            lambda: reranker.apostprocess_nodes([node], query_str="a"),
        ),
    ):
        check_refused_alike(ConfigError, *calls)
