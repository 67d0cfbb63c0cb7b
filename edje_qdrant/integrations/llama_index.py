"""LlamaIndex retriever of image nodes, and node postprocessor that reranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edje_qdrant.attach.attached_collection import AttachedCollection
from edje_qdrant.checks import check_kind, check_number
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError, MissingExtraError
from edje_qdrant.integrations.hits import (
    ImageScorer,
    hit_content,
    hit_fields,
    image_ids_of,
    rank_images,
    reranked_fields,
)
from edje_qdrant.integrations.shared_collection import SharedCollection
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.inference.precision import Precision
from edje_qdrant.search.results import SearchResult
from edje_qdrant.search.retriever import TwoStageRetriever

try:
    from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
    from llama_index.core.callbacks import CBEventType, EventPayload
    from llama_index.core.instrumentation import get_dispatcher
    from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import BaseNode, ImageNode, NodeWithScore, QueryBundle
except ImportError as error:
    raise MissingExtraError("llama-index-core", "llama-index") from error

__all__ = ["EDJENodeReranker", "EDJERetriever"]

dispatcher = get_dispatcher(__name__)


class EDJERetriever(BaseRetriever):
    """Find images by text, as image nodes scored by the joint encoder's logits.

    A node's id is the image's, its `image_path` the payload's `path`; its metadata contain
    `image_id`, `path`, `score`, `rank`, `retrieval_score`, `retrieval_rank`, `probability`,
    `match`, `payload`, `degraded` with its `reason`, and the joint encoder's `precision`. The
    metadata are excluded from the texts for language models and embeddings.

    Args:
        retriever: Searches the images; it is not closed.
        search_kwargs: Options of `TwoStageRetriever.search`.
        content_field: Payload field used as the node's text, such as `caption`.
        options: Options of LlamaIndex's base class, such as `callback_manager`.

    Raises:
        ConfigError: An option of a search is invalid, or does not exist.
    """

    def __init__(
        self,
        retriever: TwoStageRetriever,
        *,
        search_kwargs: Mapping[str, Any] | None = None,
        content_field: str | None = None,
        **options: Any,
    ) -> None:
        check_kind("retriever", retriever, TwoStageRetriever, "a TwoStageRetriever")
        super().__init__(**options)
        self._retriever = retriever
        self._search_kwargs = dict(search_kwargs or {})
        retriever.check_options(**self._search_kwargs)
        self._content_field = content_field

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._nodes(self._retriever.search(query_bundle.query_str, **self._search_kwargs))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        text = query_bundle.query_str
        return self._nodes(await self._retriever.asearch(text, **self._search_kwargs))

    def _nodes(self, result: SearchResult) -> list[NodeWithScore]:
        nodes = []
        for hit in result:
            fields = hit_fields(hit, result)
            node = ImageNode(
                id_=hit.image_id,
                text=hit_content(hit, self._content_field),
                image_path=fields["path"],
                metadata=fields,
                excluded_llm_metadata_keys=[*fields],
                excluded_embed_metadata_keys=[*fields],
            )
            nodes.append(NodeWithScore(node=node, score=hit.score))
        return nodes


class EDJENodeReranker(BaseNodePostprocessor):
    """Rerank nodes that name an image of a collection, from any retriever.

    Returns copies of the nodes, best first, with the joint encoder's logit as `score` and the new
    rank as `rank` in their metadata too. Callback handlers and LlamaIndex's instrumentation get its
    events of reranking.

    Give either `scorer`, or `location` and `name`: then the collection is opened at the first use,
    and shared with other components that name it. `to_dict`, `to_json` and `pickle` write where the
    collection is, not what it holds and no API key; a reranker made from that opens the collection
    unless `from_dict(data, scorer=...)` passes an open one. Wrong arguments are refused with
    pydantic's `ValidationError`.

    Attributes:
        scorer: A `TwoStageRetriever` or `AttachedCollection`; it is not closed.
        location: A folder, `"http://..."` or `"https://..."`; by default that of `scorer`.
        name: Name of the collection.
        attached: Whether the collection was made by another program and has attached tokens.
        model: The argument of `EDJEModel.from_pretrained`; by default the name stored in the
            collection.
        device: The device for the model; by default CUDA if available.
        precision: Precision of the joint encoder; see `Reranker`.
        api_key: Sent with every request to a server.
        top_n: Nodes to return; all by default.
        id_key: Key of the image's id in a node's metadata.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    scorer: ImageScorer | None = Field(default=None, exclude=True, repr=False)
    location: str | None = None
    name: str = "images"
    attached: bool = False
    model: str | None = None
    device: str | None = None
    precision: Precision = "auto"
    api_key: str | None = Field(default=None, exclude=True, repr=False)
    top_n: int | None = None
    id_key: str = "image_id"

    _shared: SharedCollection | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        """Check the arguments, and read from an open collection where it is.

        pydantic reports a ConfigError as a ValidationError.
        """
        super().model_post_init(context)
        check_number("top_n", self.top_n, optional=True)
        if self.scorer is not None:
            if self.location is None:
                self._describe(self.scorer)
            return
        if self.location is None:
            raise ConfigError(
                "there is no collection to score with; pass scorer=, or location= and name=, which "
                "a reranker that is serialized needs"
            )
        api_key = self.api_key
        self._shared = SharedCollection(
            AttachedCollection if self.attached else TwoStageRetriever,
            self.location,
            self.name,
            model=self.model,
            device=self.device,
            precision=self.precision,
            api_key=lambda: api_key,
        )

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the class, for LlamaIndex."""
        return "EDJENodeReranker"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as `to_dict` does; the base class would try to pickle the model first."""
        return type(self).from_dict, (self.to_dict(),)

    def close(self) -> None:
        """Release the collection if it was opened here."""
        if self._shared is not None:
            self._shared.close()

    def _describe(self, scorer: ImageScorer) -> None:
        """Take over where an open collection is, if another process can open it."""
        place: AttachedCollection | ImageCollection
        if isinstance(scorer, AttachedCollection):
            place, self.attached = scorer, True
        elif isinstance(scorer, TwoStageRetriever):
            place = scorer.collection
        else:
            return
        # An exported model is not loaded by its name.
        if place.location == ":memory:" or not isinstance(scorer.model, EDJEModel):
            return
        self.location, self.name = place.location, place.name
        self.model = scorer.model.name_or_path
        self.device = str(scorer.model.device)

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ConfigError("there is no query to rerank by; pass query_str or query_bundle")
        if not nodes:
            return []
        ids = image_ids_of([node.node.metadata for node in nodes], self.id_key)
        scorer: Any = self.scorer if self._shared is None else self._shared.opened()
        model = getattr(getattr(scorer, "model", None), "name_or_path", None) or "edje"
        top_n = len(nodes) if self.top_n is None else self.top_n
        dispatcher.event(
            ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=top_n, model_name=model)
        )
        payload = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: model,
            EventPayload.QUERY_STR: query_bundle.query_str,
            EventPayload.TOP_K: top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            order = rank_images(scorer, query_bundle.query_str, ids, self.top_n)
            reranked = [
                NodeWithScore(
                    node=_reranked(nodes[place].node, scorer, query_bundle.query_str, score, rank),
                    score=score,
                )
                for rank, (place, score) in enumerate(order, start=1)
            ]
            event.on_end(payload={EventPayload.NODES: reranked})
        dispatcher.event(ReRankEndEvent(nodes=reranked))
        return reranked


def _reranked(node: BaseNode, scorer: ImageScorer, text: str, score: float, rank: int) -> BaseNode:
    """Return a copy of a node with new scores, which texts for models leave out."""
    fields = reranked_fields(node.metadata, scorer, text, score, rank)
    new = [name for name in fields if name not in node.metadata]
    return node.model_copy(
        update={
            "metadata": fields,
            "excluded_llm_metadata_keys": [*node.excluded_llm_metadata_keys, *new],
            "excluded_embed_metadata_keys": [*node.excluded_embed_metadata_keys, *new],
        }
    )
