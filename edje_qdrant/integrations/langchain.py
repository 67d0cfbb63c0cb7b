"""LangChain retriever, and document compressor that reranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, Field

from edje_qdrant.errors import MissingExtraError
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
    from langchain_core.callbacks import (
        AsyncCallbackManagerForRetrieverRun,
        CallbackManagerForRetrieverRun,
        Callbacks,
    )
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.retrievers import BaseRetriever
except ImportError as error:
    raise MissingExtraError("langchain-core", "langchain") from error

__all__ = ["EDJEDocumentReranker", "EDJERetriever"]


class EDJERetriever(BaseRetriever):
    """Find images by text, as LangChain documents.

    A document's id is the image's, its text the image's path (or a payload field), and its
    metadata contain `image_id`, `path`, `score`, `rank`, `retrieval_score`, `retrieval_rank`,
    `probability`, `payload`, `degraded` with its `reason`, and the joint encoder's `precision`.

    Attributes:
        retriever: Searches the images; it is not closed.
        search_kwargs: Options of `TwoStageRetriever.search`; options of a call override them.
        content_field: Payload field used as the text, such as `caption`.

    Examples:
        >>> retriever = EDJERetriever(retriever=TwoStageRetriever.open("photos"))
        >>> documents = retriever.invoke("a dog in the snow", top_k=5)
    """

    retriever: TwoStageRetriever
    search_kwargs: Mapping[str, Any] = Field(default_factory=dict)
    content_field: str | None = None

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002 - LangChain's signature
        **options: Any,
    ) -> list[Document]:
        return self._documents(self.retriever.search(query, **{**self.search_kwargs, **options}))

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,  # noqa: ARG002
        **options: Any,
    ) -> list[Document]:
        found = await self.retriever.asearch(query, **{**self.search_kwargs, **options})
        return self._documents(found)

    def _documents(self, result: SearchResult) -> list[Document]:
        return [
            Document(
                id=hit.image_id,
                page_content=hit_content(hit, self.content_field),
                metadata=hit_fields(hit, result),
            )
            for hit in result
        ]


class EDJEDocumentReranker(BaseDocumentCompressor):
    """Rerank documents that name an image of a collection, from any retriever.

    Returns copies of the documents, best first, with the joint encoder's logit as `score` and the
    new rank as `rank` in their metadata.

    Attributes:
        scorer: A `TwoStageRetriever` or `AttachedCollection`.
        top_n: Documents to return; all by default.
        id_key: Key of the image's id in the metadata.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    scorer: ImageScorer
    top_n: int | None = None
    id_key: str = "image_id"

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,  # noqa: ARG002 - LangChain's signature
    ) -> list[Document]:
        """Return the documents whose images match a text best.

        Raises:
            ConfigError: A document names no image, or `top_n` is below 1.
            TokensNotFoundError: An image has no tokens; names the image.
            StoreError: Tokens cannot be read.
        """
        ids = image_ids_of([document.metadata for document in documents], self.id_key)
        reranked: list[Document] = []
        for place, score in rank_images(self.scorer, query, ids, self.top_n):
            document = documents[place]
            fields = {**document.metadata, "score": score, "rank": len(reranked) + 1}
            reranked.append(document.model_copy(update={"metadata": fields}))
        return reranked
