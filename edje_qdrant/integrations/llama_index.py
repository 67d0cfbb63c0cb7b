"""LlamaIndex retriever of image nodes, and node postprocessor that reranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edje_qdrant.errors import ConfigError, MissingExtraError
from edje_qdrant.integrations.hits import (
    ImageScorer,
    hit_content,
    hit_fields,
    image_ids_of,
    rank_images,
)
from edje_qdrant.search.results import SearchResult
from edje_qdrant.search.retriever import TwoStageRetriever

try:
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle
except ImportError as error:
    raise MissingExtraError("llama-index-core", "llama-index") from error

__all__ = ["EDJENodeReranker", "EDJERetriever"]


class EDJERetriever(BaseRetriever):
    """Find images by text, as image nodes scored by the joint encoder's logits.

    A node's id is the image's, its `image_path` the payload's `path`; its metadata contain
    `image_id`, `path`, `score`, `rank`, `retrieval_score`, `retrieval_rank`, `probability`,
    `payload`, `degraded` with its `reason`, and the joint encoder's `precision`. The
    metadata are excluded from the texts for language models and embeddings.

    Args:
        retriever: Searches the images; it is not closed.
        search_kwargs: Options of `TwoStageRetriever.search`.
        content_field: Payload field used as the node's text, such as `caption`.
        options: Options of LlamaIndex's base class, such as `callback_manager`.
    """

    def __init__(
        self,
        retriever: TwoStageRetriever,
        *,
        search_kwargs: Mapping[str, Any] | None = None,
        content_field: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._retriever = retriever
        self._search_kwargs = dict(search_kwargs or {})
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

    Attributes:
        scorer: A `TwoStageRetriever` or `AttachedCollection`.
        top_n: Nodes to return; all by default.
        id_key: Key of the image's id in a node's metadata.
    """

    scorer: ImageScorer
    top_n: int | None = None
    id_key: str = "image_id"

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the class, for LlamaIndex."""
        return "EDJENodeReranker"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ConfigError("there is no query to rerank by; pass query_str or query_bundle")
        ids = image_ids_of([node.node.metadata for node in nodes], self.id_key)
        order = rank_images(self.scorer, query_bundle.query_str, ids, self.top_n)
        return [NodeWithScore(node=nodes[place].node, score=score) for place, score in order]
