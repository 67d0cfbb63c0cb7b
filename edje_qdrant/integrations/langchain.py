"""LangChain retriever, and document compressor that reranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import AliasChoices, ConfigDict, Field

from edje_qdrant.errors import ConfigError, MissingExtraError
from edje_qdrant.integrations.hits import (
    ImageScorer,
    hit_content,
    hit_fields,
    image_ids_of,
    rank_images,
    reranked_fields,
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
    `probability`, `match`, `payload`, `degraded` with its `reason`, and the joint encoder's
    `precision`.

    An argument of the class that does not exist, and a wrong option in `search_kwargs`, are refused
    with pydantic's `ValidationError`; a wrong option of a call with `ConfigError`.

    Attributes:
        retriever: Searches the images; it is not closed.
        k: Documents to return, LangChain's name for the option `top_k`; both names are accepted,
            here and in a call.
        search_kwargs: Options of `TwoStageRetriever.search`; options of a call override them.
        content_field: Payload field used as the text, such as `caption`.

    Examples:
        >>> retriever = EDJERetriever(retriever=TwoStageRetriever.open("photos"), k=5)
        >>> documents = retriever.invoke("a dog in the snow")
        >>> documents = retriever.invoke("a dog in the snow", k=20)
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    retriever: TwoStageRetriever
    k: int | None = Field(default=None, validation_alias=AliasChoices("k", "top_k"))
    search_kwargs: Mapping[str, Any] = Field(default_factory=dict)
    content_field: str | None = None

    def model_post_init(self, context: Any, /) -> None:
        """Check the options of searches; pydantic reports a ConfigError as a ValidationError."""
        super().model_post_init(context)
        if self.k is not None and self.search_kwargs.keys() & {"k", "top_k"}:
            raise ConfigError("search_kwargs and k both give the number of documents; give one")
        self.retriever.check_options(**self._options({}))

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002 - LangChain's signature
        **options: Any,
    ) -> list[Document]:
        return self._documents(self.retriever.search(query, **self._options(options)))

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,  # noqa: ARG002
        **options: Any,
    ) -> list[Document]:
        return self._documents(await self.retriever.asearch(query, **self._options(options)))

    def _options(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of a search, by its own names; those of a call go first."""
        own = {} if self.k is None else {"top_k": self.k}
        return {**own, **_with_top_k(self.search_kwargs), **_with_top_k(call)}

    def _documents(self, result: SearchResult) -> list[Document]:
        return [
            Document(
                id=hit.image_id,
                page_content=hit_content(hit, self.content_field),
                metadata=hit_fields(hit, result),
            )
            for hit in result
        ]


def _with_top_k(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with `top_k` in the place of `k`."""
    if "k" not in options:
        return dict(options)
    if "top_k" in options:
        raise ConfigError("k and top_k are two names of one option; give one of them")
    return {"top_k" if name == "k" else name: value for name, value in options.items()}


class EDJEDocumentReranker(BaseDocumentCompressor):
    """Rerank documents that name an image of a collection, from any retriever.

    Returns copies of the documents, best first, with the joint encoder's logit as `score` and the
    new rank as `rank` in their metadata.

    Attributes:
        scorer: A `TwoStageRetriever` or `AttachedCollection`.
        top_n: Documents to return; all by default.
        id_key: Key of the image's id in the metadata.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

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
            fields = reranked_fields(
                document.metadata, self.scorer, query, score, len(reranked) + 1
            )
            reranked.append(document.model_copy(update={"metadata": fields}))
        return reranked
