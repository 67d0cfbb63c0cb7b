"""Haystack components: a retriever of images, and a ranker of documents that name images.

Components of one process that name the same collection share it, so that a retriever and a ranker
of one pipeline can use the same folder.
"""

from __future__ import annotations

from dataclasses import replace
from threading import RLock
from typing import Any
from weakref import finalize

from typing_extensions import Self

from edje_qdrant.attach.attached_collection import AttachedCollection
from edje_qdrant.errors import MissingExtraError
from edje_qdrant.integrations.hits import hit_content, hit_fields, image_ids_of, rank_images
from edje_qdrant.model.inference.precision import Precision
from edje_qdrant.search.results import SearchResult
from edje_qdrant.search.retriever import TwoStageRetriever

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.utils import Secret, deserialize_secrets_inplace
except ImportError as error:
    raise MissingExtraError("haystack-ai", "haystack") from error

__all__ = ["EDJERanker", "EDJERetriever"]

_open: dict[tuple[Any, ...], _Shared] = {}
_lock = RLock()


class _Shared:
    """Hold an open collection and the number of components that use it."""

    def __init__(self, opened: TwoStageRetriever | AttachedCollection) -> None:
        self.opened = opened
        self.users = 0


class _SharedCollection:
    """Hold the location of a component's collection and its model; open and release it."""

    def __init__(
        self,
        location: str,
        name: str,
        model: str | None,
        device: str | None,
        api_key: Secret | None,
        precision: Precision,
    ) -> None:
        self._location, self._name = location, name
        self._model, self._device, self._api_key = model, device, api_key
        self._precision: Precision = precision
        self._release: finalize[Any, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "location": self._location,
            "name": self._name,
            "model": self._model,
            "device": self._device,
            "api_key": self._api_key.to_dict() if self._api_key else None,
            "precision": self._precision,
        }

    def opened(self, kind: type[Any]) -> Any:
        """Return the collection; it is opened once for all components that name it."""
        api_key = self._api_key.resolve_value() if self._api_key else None
        settings = (self._location, self._name, self._model, self._device, self._precision)
        key = (kind, *settings, api_key)
        with _lock:
            if self._release is None or not self._release.alive:
                if key not in _open:
                    _open[key] = _Shared(
                        kind.open(
                            self._location,
                            self._name,
                            model=self._model,
                            device=self._device,
                            api_key=api_key,
                            precision=self._precision,
                        )
                    )
                _open[key].users += 1
                self._release = finalize(self, _release, key)
            return _open[key].opened

    def close(self) -> None:
        if self._release is not None:
            self._release()


def _release(key: tuple[Any, ...]) -> None:
    with _lock:
        shared = _open[key]
        shared.users -= 1
        if not shared.users:
            del _open[key]
            shared.opened.close()


class _Component:
    """Base of both components: open and close the collection, convert from and to a dict."""

    _shared: _SharedCollection
    _kind: type[Any] = TwoStageRetriever

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
        self._opened()

    def close(self) -> None:
        """Release the collection; it is closed when no component uses it any more."""
        self._shared.close()

    def _opened(self) -> Any:
        return self._shared.opened(self._kind)

    def _as_dict(self, **own: Any) -> dict[str, Any]:
        fields: dict[str, Any] = default_to_dict(self, **self._shared.as_dict(), **own)
        return fields


@component
class EDJERetriever(_Component):
    """Find images by text.

    A document's id is the image's, its content the image's path (or a payload field), its score
    the joint encoder's logit; its meta hold `image_id`, `path`, `score`, `rank`, `retrieval_score`,
    `retrieval_rank`, `probability`, `payload`, `degraded` with its `reason`, and the joint
    encoder's `precision`.
    """

    def __init__(
        self,
        location: str,
        name: str = "images",
        *,
        model: str | None = None,
        device: str | None = None,
        precision: Precision = "auto",
        api_key: Secret | None = None,
        top_k: int = 10,
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
            search_kwargs: Other options of `TwoStageRetriever.search`.
            content_field: Payload field used as the content, such as `caption`.
        """
        self._shared = _SharedCollection(location, name, model, device, api_key, precision)
        self.top_k = top_k
        self.search_kwargs = dict(search_kwargs or {})
        self.content_field = content_field

    def to_dict(self) -> dict[str, Any]:
        """Return the component as a JSON object; of an API key only the name of its variable."""
        return self._as_dict(
            top_k=self.top_k, search_kwargs=self.search_kwargs, content_field=self.content_field
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
                the component; `filter` has this package's format, not Haystack's.

        Raises:
            ConfigError: The text contains no word, or an option is invalid.
            StoreError: The collection cannot be read.
        """
        return self._output(self._opened().search(query, **self._options(top_k, search_kwargs)))

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
        return self._output(await self._opened().asearch(query, **options))

    def _options(self, top_k: int | None, further: dict[str, Any] | None) -> dict[str, Any]:
        wanted = self.top_k if top_k is None else top_k
        return {**self.search_kwargs, **(further or {}), "top_k": wanted}

    def _output(self, result: SearchResult) -> dict[str, list[Document]]:
        documents = [
            Document(
                id=hit.image_id,
                content=hit_content(hit, self.content_field),
                meta=hit_fields(hit, result),
                score=hit.score,
            )
            for hit in result
        ]
        return {"documents": documents}


@component
class EDJERanker(_Component):
    """Rerank documents that name an image of a collection, from any retriever."""

    def __init__(
        self,
        location: str,
        name: str = "images",
        *,
        attached: bool = False,
        model: str | None = None,
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
        self._shared = _SharedCollection(location, name, model, device, api_key, precision)
        self.attached = attached
        self._kind = AttachedCollection if attached else TwoStageRetriever
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
        ids = image_ids_of([document.meta for document in documents], self.id_key)
        wanted = self.top_k if top_k is None else top_k
        reranked: list[Document] = []
        for place, score in rank_images(self._opened(), query, ids, wanted):
            fields = {**documents[place].meta, "score": score, "rank": len(reranked) + 1}
            reranked.append(replace(documents[place], score=score, meta=fields))
        return {"documents": reranked}
