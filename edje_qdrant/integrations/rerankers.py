"""Ranker of images for the library `rerankers`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from edje_qdrant.checks import check_list
from edje_qdrant.errors import ConfigError, ImageReadError, MissingExtraError
from edje_qdrant.integrations.cross_encoder import EDJECrossEncoder, RankableImage
from edje_qdrant.integrations.hits import ImageScorer
from edje_qdrant.integrations.image_inputs import image_from_base64
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.inference.precision import Precision

try:
    from rerankers.documents import Document
    from rerankers.models.ranker import BaseRanker
    from rerankers.results import RankedResults, Result
except ImportError as error:
    raise MissingExtraError("rerankers", "rerankers") from error

__all__ = ["EDJERanker"]

# Characters of the smallest image in base64; a shorter text is a path or an id.
_SHORTEST_BASE64 = 64


class EDJERanker(BaseRanker):
    """Rank images by a text, with the interface of the library `rerankers`.

    Args:
        model_name_or_path: A model, or the argument of `EDJEModel.from_pretrained`.
        verbose: Ignored: nothing is printed.
        collection: A `TwoStageRetriever` or `AttachedCollection` with the same model; images may
            then be given by their ids.
        device: The device for a model that is loaded here; by default CUDA if available.
        precision: Precision of the joint encoder, see `Reranker`; `collection` has its own.
        batch_size: Images encoded at a time.
        revision: Branch, tag or commit of a model that is loaded from the hub.
        cache_dir: Folder for downloads; by default that of huggingface_hub.
        token: Access token of the hub; by default the stored one.
        local_files_only: Make no request: use only what was downloaded before.
    """

    def __init__(
        self,
        model_name_or_path: EDJEModel | str | Path = "demo",
        verbose: int = 0,
        *,
        collection: ImageScorer | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        batch_size: int = 32,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> None:
        self.verbose = verbose
        self.batch_size = batch_size
        self._encoder = EDJECrossEncoder(
            model_name_or_path,
            collection=collection,
            device=device,
            precision=precision,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )

    @property
    def precision(self) -> str:
        """Return the precision of the joint encoder; see `Reranker.precision`."""
        return self._encoder.precision

    def score(self, query: str, doc: RankableImage | Document) -> float:
        """Return the logit of a text and an image.

        Raises:
            ConfigError: The text contains no word, or the document is not an image.
            ImageReadError: The image cannot be read.
        """
        scores: Any = self._encoder.predict([(query, _image_of(doc))])
        return float(scores[0])

    def rank(
        self,
        query: str,
        docs: Any,
        doc_ids: Sequence[str | int] | None = None,
        metadata: Sequence[dict[str, Any]] | None = None,
    ) -> RankedResults:
        """Rank images by how well they match a text.

        Args:
            query: The text.
            docs: One or several: paths, Pillow images, images in base64, ids in the collection, or
                documents of `rerankers` with an `image_path`, with `base64`, or with a `doc_id` in
                the collection. Documents are not changed.
            doc_ids: The ids in the results, before those of documents; by default numbers from 0
                where a document has none.
            metadata: The metadata in the results, before those of documents.

        Raises:
            ConfigError: The text contains no word, a document is not an image, or the number of
                ids or metadata differs from the number of documents.
            ImageReadError: An image cannot be read.
            TokensNotFoundError: The collection does not contain an image.
        """
        given = list(docs) if isinstance(docs, list | tuple) else [docs]
        for what, values in (("doc_ids", doc_ids), ("metadata", metadata)):
            if values is None:
                continue
            check_list(what, values)
            if len(values) != len(given):
                raise ConfigError(
                    f"{len(values)} {what} for {len(given)} documents; give one for each"
                )
        images = [_image_of(doc) for doc in given]
        documents = [
            _document(
                doc,
                images[place],
                place,
                None if doc_ids is None else doc_ids[place],
                None if metadata is None else metadata[place],
            )
            for place, doc in enumerate(given)
        ]
        ranked = self._encoder.rank(query, images, batch_size=self.batch_size)
        results = [
            Result(document=documents[found["corpus_id"]], score=found["score"], rank=rank)
            for rank, found in enumerate(ranked, start=1)
        ]
        return RankedResults(results=results, query=query, has_scores=True)

    async def rank_async(
        self,
        query: str,
        docs: Any,
        doc_ids: Sequence[str | int] | None = None,
        metadata: Sequence[dict[str, Any]] | None = None,
    ) -> RankedResults:
        """Run `rank` in another thread, without blocking the event loop.

        Args:
            query: As for `rank`.
            docs: As for `rank`.
            doc_ids: As for `rank`.
            metadata: As for `rank`.
        """
        return await asyncio.to_thread(self.rank, query, docs, doc_ids, metadata)


def _image_of(doc: RankableImage | Document) -> RankableImage:
    """Return the image that a document refers to.

    Raises:
        ConfigError: The document is not an image.
        ImageReadError: The image cannot be decoded.
    """
    if isinstance(doc, str) and len(doc) >= _SHORTEST_BASE64:
        return _in_base64(doc) or doc
    if not isinstance(doc, Document):
        return doc
    if doc.base64 is not None:
        return image_from_base64(doc.base64, f"of document {doc.doc_id!r}")
    image: RankableImage | None = doc.image_path if doc.image_path is not None else doc.doc_id
    if doc.document_type != "image" or image is None:
        raise ConfigError(
            f"document {doc.doc_id!r} is not an image; pass document_type='image' with image_path, "
            "base64, or the id of an image in the collection as doc_id"
        )
    return image


def _in_base64(text: str) -> Image.Image | None:
    """Return the image that a text holds in base64; None if it is something else, as a path is."""
    try:
        return image_from_base64(text, "in base64")
    except ImageReadError:
        return None


def _document(
    doc: RankableImage | Document,
    image: RankableImage,
    place: int,
    doc_id: str | int | None,
    metadata: dict[str, Any] | None,
) -> Document:
    """Return a copy of the document that was passed in, or make one from an image."""
    if isinstance(doc, Document):
        made = copy(doc)
        made.metadata = dict(doc.metadata)
    else:
        text = str(doc) if isinstance(doc, str | Path) else None
        kind = "base64" if isinstance(image, Image.Image) else "image_path"
        made = Document(document_type="image", **{kind: text})
    if doc_id is not None:
        made.doc_id = doc_id
    elif made.doc_id is None:
        made.doc_id = place
    if metadata is not None:
        made.metadata = metadata
    return made
