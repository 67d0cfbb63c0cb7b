"""Ranker of images for the library `rerankers`."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from edje_qdrant.errors import ConfigError, ImageReadError, MissingExtraError
from edje_qdrant.images import error_reason, open_upright
from edje_qdrant.integrations.cross_encoder import EDJECrossEncoder, RankableImage
from edje_qdrant.integrations.hits import ImageScorer
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.inference.precision import Precision

try:
    from rerankers.documents import Document
    from rerankers.models.ranker import BaseRanker
    from rerankers.results import RankedResults, Result
except ImportError as error:
    raise MissingExtraError("rerankers", "rerankers") from error

__all__ = ["EDJERanker"]


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
    ) -> None:
        self.verbose = verbose
        self.batch_size = batch_size
        self._encoder = EDJECrossEncoder(
            model_name_or_path, collection=collection, device=device, precision=precision
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
        return float(self._encoder.predict([(query, _image_of(doc))])[0])

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
            docs: One or several: paths, Pillow images, ids in the collection, or documents of
                `rerankers` with an `image_path`, with `base64`, or with a `doc_id` in the
                collection.
            doc_ids: The ids of documents that have none; by default numbers from 0.
            metadata: The metadata of documents that have none.

        Raises:
            ConfigError: The text contains no word, a document is not an image, or the number of
                ids or metadata differs from the number of documents.
            ImageReadError: An image cannot be read.
            TokensNotFoundError: The collection does not contain an image.
        """
        given = list(docs) if isinstance(docs, list | tuple) else [docs]
        for what, values in (("doc_ids", doc_ids), ("metadata", metadata)):
            if values is not None and len(values) != len(given):
                raise ConfigError(
                    f"{len(values)} {what} for {len(given)} documents; give one for each"
                )
        images = [_image_of(doc) for doc in given]
        documents = [
            _document(
                doc,
                place if doc_ids is None else doc_ids[place],
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


def _image_of(doc: RankableImage | Document) -> RankableImage:
    """Return the image that a document refers to.

    Raises:
        ConfigError: The document is not an image.
        ImageReadError: The image cannot be decoded.
    """
    if not isinstance(doc, Document):
        return doc
    name = f"of document {doc.doc_id!r}"
    if doc.base64 is not None:
        name = f"of document {doc.doc_id!r}"
        try:
            content = base64.b64decode(doc.base64, validate=True)
        except binascii.Error as error:
            raise ImageReadError(name, error_reason(error)) from error
        return open_upright(io.BytesIO(content), name)
    image: RankableImage | None = doc.image_path if doc.image_path is not None else doc.doc_id
    if doc.document_type != "image" or image is None:
        raise ConfigError(
            f"document {doc.doc_id!r} is not an image; pass document_type='image' with image_path, "
            "base64, or the id of an image in the collection as doc_id"
        )
    return image


def _document(
    doc: RankableImage | Document, doc_id: str | int, metadata: dict[str, Any] | None
) -> Document:
    """Return the document as passed in, or make one from an image."""
    if isinstance(doc, Document):
        if doc.doc_id is None:
            doc.doc_id = doc_id
        return doc
    path = str(doc) if isinstance(doc, str | Path) else None
    return Document(document_type="image", image_path=path, doc_id=doc_id, metadata=metadata)
