"""Evaluation in memory, with exact cosines and large batches; results as through a retriever."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.evaluation.gallery import Gallery
from edje_qdrant.evaluation.image_to_text import Encodings, encode_captions, pairs_at_once
from edje_qdrant.evaluation.nearest import nearest
from edje_qdrant.evaluation.rankings import Rankings, caption_rankings
from edje_qdrant.model import EDJEModel
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.types import ImageEncoding

__all__ = ["array_encodings", "read_out", "text_to_image"]

_IMAGES = 1024


def read_out(gallery: Gallery, collection: ImageCollection) -> ImageEncoding:
    """Read the gallery's embeddings and tokens from a collection, in the gallery's order."""
    contract = collection.contract
    count = len(gallery)
    embeddings = np.empty((count, contract.embedding_dim), np.float32)
    tokens = np.empty((count, contract.num_tokens, contract.token_dim), np.float16)
    for start in range(0, count, _IMAGES):
        rows = slice(start, start + _IMAGES)
        stored = collection.encodings(gallery.image_ids[rows])
        embeddings[rows], tokens[rows] = stored.embeddings, stored.tokens
    return ImageEncoding(embeddings, tokens)


def text_to_image(
    gallery: Gallery,
    model: EDJEModel,
    images: ImageEncoding,
    depth: int,
    *,
    reranker: Reranker | None = None,
    progress: bool = False,
) -> Rankings:
    """Rank the gallery's images for every caption that is a query.

    Args:
        gallery: Images and captions.
        model: Encodes captions and scores pairs.
        images: The gallery's embeddings and tokens, in its order.
        depth: Candidates for each caption.
        reranker: Scores pairs; by default `Reranker(model)`.
        progress: Show a bar on stderr.
    """
    asked = np.flatnonzero(gallery.asked[gallery.owner])
    texts = encode_captions(model, tuple(gallery.captions[row] for row in asked))
    candidates, first = nearest(texts, images.embeddings, depth, names=gallery.image_ids)
    depth = candidates.shape[1]
    joint = np.empty(candidates.shape, np.float32)
    reranker = reranker or Reranker(model)
    step = max(1, pairs_at_once(model) // depth)
    with tqdm(total=len(asked), desc="captions", unit=" queries", disable=not progress) as bar:
        for start in range(0, len(asked), step):
            rows = slice(start, start + step)
            captions = [gallery.captions[row] for row in asked[rows] for _ in range(depth)]
            scores = reranker.score_pairs(captions, images.tokens[candidates[rows].ravel()])
            joint[rows] = scores.reshape(-1, depth)
            bar.update(len(scores) // depth)
    return caption_rankings(
        gallery, asked, gallery.paths, candidates, first, joint, pool=len(gallery)
    )


def array_encodings(images: ImageEncoding) -> Encodings:
    """Return a function that reads embeddings and tokens of images from arrays."""

    def read(rows: NDArray[np.int64]) -> ImageEncoding:
        return ImageEncoding(images.embeddings[rows], images.tokens[rows])

    return read
