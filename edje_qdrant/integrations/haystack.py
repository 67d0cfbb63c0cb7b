"""Haystack components: a retriever of images, and a ranker of documents that name images.

Components of one process that name the same collection share it, so that a retriever and a ranker
of one pipeline can use the same folder.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import Self

from edje_qdrant.attach.attached_collection import AttachedCollection
from edje_qdrant.errors import MissingExtraError
from edje_qdrant.index.filters.filter import given_filter, qdrant_filter
from edje_qdrant.index.filters.from_json import filter_from_json
from edje_qdrant.integrations.hits import (
    hit_content,
    hit_fields,
    image_ids_of,
    rank_images,
    reranked_fields,
)
from edje_qdrant.integrations.shared_collection import SharedCollection
from edje_qdrant.model.inference.precision import Precision
from edje_qdrant.search.options import TOP_K, with_defaults
from edje_qdrant.search.results import SearchResult
from edje_qdrant.search.retriever import TwoStageRetriever

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.utils import Secret, deserialize_secrets_inplace
except ImportError as error:
    raise MissingExtraError("haystack-ai", "haystack") from error

__all__ = ["EDJERanker", "EDJERetriever"]

# Stands for qdrant-client's own filter in a serialized component, and in options that are JSON. No
# plain filter is like that: its values are texts, integers, booleans or lists of them.
_QDRANT_FILTER = "qdrant_filter"
# Levels of its JSON.
_DEEPEST = 128


class _Component:
    """Base of both components: open and close the collection, convert from and to a dict."""

    # Not `__init__`: Haystack's decorator makes another class, in which `super()` does not work.
    def _configure(
        self,
        kind: type[TwoStageRetriever] | type[AttachedCollection],
        location: str | Path,
        name: str,
        model: str | Path | None,
        device: str | None,
        precision: Precision,
        api_key: Secret | None,
    ) -> None:
        self._place: dict[str, Any] = {
            "location": str(location),
            "name": name,
            "model": None if model is None else str(model),
            "device": device,
            "precision": precision,
        }
        self._api_key = api_key
        key = api_key.resolve_value if api_key else None
        self._shared = SharedCollection(kind, **self._place, api_key=key)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Create a component from the result of `to_dict`."""
        deserialize_secrets_inplace(data["init_parameters"], keys=["api_key"])
        made: Self = default_from_dict(cls, data)
        return made

    def warm_up(self) -> None:
        """Open the collection and load the model; a second call does nothing.

        Raises:
            StoreError: The collection cannot be opened.
            CheckpointError: The model cannot be loaded.
        """
        self._shared.opened()

    def close(self) -> None:
        """Release the collection; it is closed when no component uses it any more."""
        self._shared.close()

    def _as_dict(self, **own: Any) -> dict[str, Any]:
        api_key = self._api_key.to_dict() if self._api_key else None
        fields: dict[str, Any] = default_to_dict(self, **self._place, api_key=api_key, **own)
        return fields


@component
class EDJERetriever(_Component):
    """Find images by text.

    A document's id is the image's, its content the image's path (or a payload field), its score
    the joint encoder's logit; its meta hold `image_id`, `path`, `score`, `rank`, `retrieval_score`,
    `retrieval_rank`, `probability`, `match`, `payload`, `degraded` with its `reason`, and the joint
    encoder's `precision`. `file_path` repeats the path under the name that Haystack's converters
    read, such as `DocumentToImageContent`.
    """

    def __init__(
        self,
        location: str | Path,
        name: str = "images",
        *,
        model: str | Path | None = None,
        device: str | None = None,
        precision: Precision = "auto",
        api_key: Secret | None = None,
        top_k: int = TOP_K,
        search_kwargs: dict[str, Any] | None = None,
        content_field: str | None = None,
    ) -> None:
        """Configure the component; the collection is opened by `warm_up` or the first `run`.

        Args:
            location: A folder, `"http://..."` or `"https://..."`.
            name: Name of the collection.
            model: The argument of `EDJEModel.from_pretrained`; by default the name stored in the
                collection.
            device: The device for the model; by default CUDA if available.
            precision: Precision of the joint encoder; see `Reranker`.
            api_key: Sent with every request to a server.
            top_k: Documents to return.
            search_kwargs: Other options of `TwoStageRetriever.search`; `filter` may be a
                `qdrant_client.models.Filter`, or its JSON as `{"qdrant_filter": {...}}`.
            content_field: Payload field used as the content, such as `caption`.

        Raises:
            ConfigError: An option of a search is invalid.
        """
        self._configure(TwoStageRetriever, location, name, model, device, precision, api_key)
        self.top_k = top_k
        self.search_kwargs = _with_filter(search_kwargs or {})
        self.content_field = content_field
        options: Any = self._options(None, None)
        qdrant_filter(with_defaults(options)["filter"])  # checks all

    def to_dict(self) -> dict[str, Any]:
        """Return the component as a JSON object; of an API key only the name of its variable."""
        return self._as_dict(
            top_k=self.top_k,
            search_kwargs=_as_json(self.search_kwargs),
            content_field=self.content_field,
        )

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, top_k: int | None = None, search_kwargs: dict[str, Any] | None = None
    ) -> dict[str, list[Document]]:
        """Find images.

        Args:
            query: What the image shows.
            top_k: Documents to return; by default the component's `top_k`.
            search_kwargs: Other options of `TwoStageRetriever.search`, which override those of
                the component; `filter` is as for the component, not in Haystack's format.

        Raises:
            ConfigError: The text contains no word, or an option is invalid.
            StoreError: The collection cannot be read.
        """
        return self._output(
            self._shared.opened().search(query, **self._options(top_k, search_kwargs))
        )

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, top_k: int | None = None, search_kwargs: dict[str, Any] | None = None
    ) -> dict[str, list[Document]]:
        """Run without blocking the event loop.

        Args:
            query: As for `run`.
            top_k: As for `run`.
            search_kwargs: As for `run`.
        """
        options = self._options(top_k, search_kwargs)
        opened = await asyncio.to_thread(self._shared.opened)
        return self._output(await opened.asearch(query, **options))

    def _options(self, top_k: int | None, further: dict[str, Any] | None) -> dict[str, Any]:
        wanted = self.top_k if top_k is None else top_k
        return {**self.search_kwargs, **_with_filter(further or {}), "top_k": wanted}

    def _output(self, result: SearchResult) -> dict[str, list[Document]]:
        documents = []
        for hit in result:
            fields = hit_fields(hit, result)
            documents.append(
                Document(
                    id=hit.image_id,
                    content=hit_content(hit, self.content_field),
                    meta={**fields, "file_path": fields["path"]},
                    score=hit.score,
                )
            )
        return {"documents": documents}


@component
class EDJERanker(_Component):
    """Rerank documents that name an image of a collection, from any retriever."""

    def __init__(
        self,
        location: str | Path,
        name: str = "images",
        *,
        attached: bool = False,
        model: str | Path | None = None,
        device: str | None = None,
        precision: Precision = "auto",
        api_key: Secret | None = None,
        top_k: int | None = None,
        id_key: str = "image_id",
    ) -> None:
        """Configure the component; the collection is opened by `warm_up` or the first `run`.

        Args:
            location: A folder, `"http://..."` or `"https://..."`.
            name: Name of the collection.
            attached: Whether the collection was made by another program and has attached tokens.
            model: The argument of `EDJEModel.from_pretrained`; by default the name stored in the
                collection.
            device: The device for the model; by default CUDA if available.
            precision: Precision of the joint encoder; see `Reranker`.
            api_key: Sent with every request to a server.
            top_k: Documents to return; all by default.
            id_key: Key of the image's id in a document's meta.
        """
        kind = AttachedCollection if attached else TwoStageRetriever
        self._configure(kind, location, name, model, device, precision, api_key)
        self.attached = attached
        self.top_k = top_k
        self.id_key = id_key

    def to_dict(self) -> dict[str, Any]:
        """Return the component as a JSON object; of an API key only the name of its variable."""
        return self._as_dict(attached=self.attached, top_k=self.top_k, id_key=self.id_key)

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Sort documents by the joint encoder's logits, which become their scores.

        Args:
            query: What the images should show.
            documents: Documents with the id of their image in their meta.
            top_k: Documents to return; by default the component's `top_k`.

        Raises:
            ConfigError: A document names no image, or the text contains no word.
            TokensNotFoundError: An image has no tokens; names the image.
            StoreError: Tokens cannot be read.
        """
        return self._output(query, documents, top_k)

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Run in another thread, without blocking the event loop.

        Args:
            query: As for `run`.
            documents: As for `run`.
            top_k: As for `run`.
        """
        return await asyncio.to_thread(self._output, query, documents, top_k)

    def _output(
        self, query: str, documents: list[Document], top_k: int | None
    ) -> dict[str, list[Document]]:
        ids = image_ids_of([document.meta for document in documents], self.id_key)
        wanted = self.top_k if top_k is None else top_k
        scorer = self._shared.opened()
        reranked: list[Document] = []
        for place, score in rank_images(scorer, query, ids, wanted):
            fields = reranked_fields(documents[place].meta, scorer, query, score, len(reranked) + 1)
            reranked.append(replace(documents[place], score=score, meta=fields))
        return {"documents": reranked}


def _with_filter(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of a search, with qdrant-client's filter made from its JSON."""
    filter = options.get("filter")
    if isinstance(filter, Mapping) and isinstance(filter.get(_QDRANT_FILTER), Mapping):
        given = filter_from_json(filter[_QDRANT_FILTER], deepest=_DEEPEST)
        return {**options, "filter": given}
    return dict(options)


def _as_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of a search as a JSON object, for `_with_filter`."""
    plain = {name: [*v] if isinstance(v, tuple) else v for name, v in options.items()}
    filter = given_filter(options.get("filter"))
    if filter is not None:
        plain["filter"] = {
            _QDRANT_FILTER: json.loads(filter.model_dump_json(by_alias=True, exclude_none=True))
        }
    return plain
