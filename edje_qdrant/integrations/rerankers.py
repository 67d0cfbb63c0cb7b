"""A ranker for the library `rerankers`, whose documents are images."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from edje_qdrant.errors import ConfigError, ImageReadError, MissingExtraError
from edje_qdrant.images import words
from edje_qdrant.integrations.cross_encoder import EDJECrossEncoder, Picture
from edje_qdrant.integrations.hits import ImageScorer
from edje_qdrant.model import EDJEModel

try:
    from rerankers.documents import Document
    from rerankers.models.ranker import BaseRanker
    from rerankers.results import RankedResults, Result
except ImportError as error:
    raise MissingExtraError("rerankers", "rerankers") from error

__all__ = ["EDJERanker"]


class EDJERanker(BaseRanker):
    """Rank images by a text, with the calls of the library `rerankers`.

    Args:
        model_name_or_path: A model, or what `EDJEModel.from_pretrained` takes.
        verbose: Of no effect: nothing is printed.
        collection: `TwoStageRetriever` or `AttachedCollection`, where images may be given by
            their ids.
        device: Where a model that is loaded here goes; CUDA where there is one, by default.
        batch_size: Images encoded at a time.
    """

    def __init__(
        self,
        model_name_or_path: EDJEModel | str | Path = "demo",
        verbose: int = 0,
        *,
        collection: ImageScorer | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 32,
    ) -> None:
        self.verbose = verbose
        self.batch_size = batch_size
        self._encoder = EDJECrossEncoder(model_name_or_path, collection=collection, device=device)

    def score(self, query: str, doc: Picture | Document) -> float:
        """Return the logit of a text and an image.

        Raises:
            ConfigError: The text has no word in it, or the document is no image.
            ImageReadError: The image cannot be read.
        """
        return float(self._encoder.predict([(query, _picture(doc))])[0])

    def rank(
        self,
        query: str,
        docs: Any,
        doc_ids: Sequence[str | int] | None = None,
        metadata: Sequence[dict[str, Any]] | None = None,
    ) -> RankedResults:
        """Rank images by how well they fit a text.

        Args:
            query: The text.
            docs: One or several: paths, images that Pillow opened, ids of the collection, or
                documents of `rerankers` with an `image_path`, with `base64`, or with a `doc_id` of
                the collection.
            doc_ids: What to call them, where documents do not say it; numbers from 0 by default.
            metadata: Of each, where documents do not say it.

        Raises:
            ConfigError: The text has no word in it, a document is no image, or there are not as
                many ids or metadata as documents.
            ImageReadError: An image cannot be read.
            TokensNotFoundError: The collection has no such image.
        """
        given = list(docs) if isinstance(docs, list | tuple) else [docs]
        for what, values in (("doc_ids", doc_ids), ("metadata", metadata)):
            if values is not None and len(values) != len(given):
                raise ConfigError(
                    f"{len(values)} {what} for {len(given)} documents; give one for each"
                )
        pictures = [_picture(doc) for doc in given]
        documents = [
            _document(
                doc,
                place if doc_ids is None else doc_ids[place],
                None if metadata is None else metadata[place],
            )
            for place, doc in enumerate(given)
        ]
        ranked = self._encoder.rank(query, pictures, batch_size=self.batch_size)
        results = [
            Result(document=documents[found["corpus_id"]], score=found["score"], rank=rank)
            for rank, found in enumerate(ranked, start=1)
        ]
        return RankedResults(results=results, query=query, has_scores=True)


def _picture(doc: Picture | Document) -> Picture:
    """Return the image that a document is.

    Raises:
        ConfigError: It is none.
        ImageReadError: It cannot be decoded.
    """
    if not isinstance(doc, Document):
        return doc
    if doc.base64 is not None:
        try:
            opened: Image.Image = Image.open(
                io.BytesIO(base64.b64decode(doc.base64, validate=True))
            )
        except (binascii.Error, OSError) as error:
            raise ImageReadError(f"of document {doc.doc_id!r}", words(error)) from error
        return opened
    picture: Picture | None = doc.image_path if doc.image_path is not None else doc.doc_id
    if doc.document_type != "image" or picture is None:
        raise ConfigError(
            f"document {doc.doc_id!r} is no image; pass document_type='image' with image_path, "
            "base64, or the id of an image in the collection as doc_id"
        )
    return picture


def _document(
    doc: Picture | Document, doc_id: str | int, metadata: dict[str, Any] | None
) -> Document:
    """Return a document, as it was passed in or made of an image."""
    if isinstance(doc, Document):
        if doc.doc_id is None:
            doc.doc_id = doc_id
        return doc
    path = str(doc) if isinstance(doc, str | Path) else None
    return Document(document_type="image", image_path=path, doc_id=doc_id, metadata=metadata)
