"""Haystack components: a retriever of images, and a ranker of documents that name images.

Components of one process that name the same collection share it, so a retriever and a ranker of one
pipeline may stand on one folder.
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
from edje_qdrant.search.results import SearchResult
from edje_qdrant.search.retriever import TwoStageRetriever

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.utils import Secret, deserialize_secrets_inplace
except ImportError as error:
    raise MissingExtraError("haystack-ai", "haystack") from error

__all__ = ["EDJERanker", "EDJERetriever"]

_open: dict[tuple[Any, ...], _Shared] = {}
_turn = RLock()


class _Shared:
    """Hold an open collection, and how many components use it."""

    def __init__(self, opened: TwoStageRetriever | AttachedCollection) -> None:
        self.opened = opened
        self.users = 0


class _Place:
    """Say where a component's collection is and which model is meant; open it, and let it go."""

    def __init__(
        self,
        location: str,
        name: str,
        model: str | None,
        device: str | None,
        api_key: Secret | None,
    ) -> None:
        self._location, self._name = location, name
        self._model, self._device, self._api_key = model, device, api_key
        self._release: finalize[Any, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "location": self._location,
            "name": self._name,
            "model": self._model,
            "device": self._device,
            "api_key": self._api_key.to_dict() if self._api_key else None,
        }

    def opened(self, kind: type[Any]) -> Any:
        """Return the collection, opened once however many components name it."""
        key = self._api_key.resolve_value() if self._api_key else None
        place = (kind, self._location, self._name, self._model, self._device, key)
        with _turn:
            if self._release is None or not self._release.alive:
                if place not in _open:
                    _open[place] = _Shared(
                        kind.open(
                            self._location,
                            self._name,
                            model=self._model,
                            device=self._device,
                            api_key=key,
                        )
                    )
                _open[place].users += 1
                self._release = finalize(self, _let_go, place)
            return _open[place].opened

    def close(self) -> None:
        if self._release is not None:
            self._release()


def _let_go(place: tuple[Any, ...]) -> None:
    with _turn:
        shared = _open[place]
        shared.users -= 1
        if not shared.users:
            del _open[place]
            shared.opened.close()


class _Component:
    """Do what both components do with their place: open it, let it go, come back from a dict."""

    _place: _Place
    _kind: type[Any] = TwoStageRetriever

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make the component that `to_dict` was called on."""
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
        """Let go of the collection; the last component that has it closes it."""
        self._place.close()

    def _opened(self) -> Any:
        return self._place.opened(self._kind)

    def _as_dict(self, **own: Any) -> dict[str, Any]:
        fields: dict[str, Any] = default_to_dict(self, **self._place.as_dict(), **own)
        return fields


@component
class EDJERetriever(_Component):
    """Find images by text.

    A document's id is the image's, its content the image's path (or a payload field), its score
    the joint encoder's logit; its meta hold `image_id`, `path`, `score`, `rank`, `retrieval_score`,
    `retrieval_rank`, `probability`, `payload`, and `degraded` with its `reason`.
    """

    def __init__(
        self,
        location: str,
        name: str = "images",
        *,
        model: str | None = None,
        device: str | None = None,
        api_key: Secret | None = None,
        top_k: int = 10,
        search_kwargs: dict[str, Any] | None = None,
        content_field: str | None = None,
    ) -> None:
        """Say what to search; it is opened at `warm_up`, or the first `run`.

        Args:
            location: A folder, `"http://..."` or `"https://..."`.
            name: The collection's.
            model: What `EDJEModel.from_pretrained` takes; by default what the collection names.
            device: Where the model goes; CUDA where there is one, by default.
            api_key: Sent with every request to a server.
            top_k: Documents to return.
            search_kwargs: Further options of `TwoStageRetriever.search`.
            content_field: Payload field that becomes the content, such as `caption`.
        """
        self._place = _Place(location, name, model, device, api_key)
        self.top_k = top_k
        self.search_kwargs = dict(search_kwargs or {})
        self.content_field = content_field

    def to_dict(self) -> dict[str, Any]:
        """Return the component as a JSON object; an API key by the name of its variable only."""
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
            top_k: Documents to return, where not as many as the component's.
            search_kwargs: Further options of `TwoStageRetriever.search`, before the component's;
                `filter` is this package's, not Haystack's.

        Raises:
            ConfigError: The text has no word in it, or an option cannot be used.
            StoreError: The collection cannot be read.
        """
        return self._output(self._opened().search(query, **self._options(top_k, search_kwargs)))

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, top_k: int | None = None, search_kwargs: dict[str, Any] | None = None
    ) -> dict[str, list[Document]]:
        """Do as `run` does, while the event loop goes on.

        Args:
            query: As `run`.
            top_k: As `run`.
            search_kwargs: As `run`.
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
    """Rerank documents that name an image of a collection, whatever found them."""

    def __init__(
        self,
        location: str,
        name: str = "images",
        *,
        attached: bool = False,
        model: str | None = None,
        device: str | None = None,
        api_key: Secret | None = None,
        top_k: int | None = None,
        id_key: str = "image_id",
    ) -> None:
        """Say where the tokens are; they are opened at `warm_up`, or the first `run`.

        Args:
            location: A folder, `"http://..."` or `"https://..."`.
            name: The collection's.
            attached: Whether it is a collection of your own, to which tokens were attached.
            model: What `EDJEModel.from_pretrained` takes; by default what the collection names.
            device: Where the model goes; CUDA where there is one, by default.
            api_key: Sent with every request to a server.
            top_k: Documents to return; all by default.
            id_key: Where in a document's meta the image's id is.
        """
        self._place = _Place(location, name, model, device, api_key)
        self.attached = attached
        self._kind = AttachedCollection if attached else TwoStageRetriever
        self.top_k = top_k
        self.id_key = id_key

    def to_dict(self) -> dict[str, Any]:
        """Return the component as a JSON object; an API key by the name of its variable only."""
        return self._as_dict(attached=self.attached, top_k=self.top_k, id_key=self.id_key)

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Put documents into the joint encoder's order, its logits for scores.

        Args:
            query: What the images should show.
            documents: Each with its image's id in its meta.
            top_k: Documents to return, where not as many as the component's.

        Raises:
            ConfigError: A document names no image, or the text has no word in it.
            TokensNotFoundError: An image has no tokens; names it.
            StoreError: Tokens cannot be read.
        """
        ids = image_ids_of([document.meta for document in documents], self.id_key)
        wanted = self.top_k if top_k is None else top_k
        reranked: list[Document] = []
        for place, score in rank_images(self._opened(), query, ids, wanted):
            fields = {**documents[place].meta, "score": score, "rank": len(reranked) + 1}
            reranked.append(replace(documents[place], score=score, meta=fields))
        return {"documents": reranked}
