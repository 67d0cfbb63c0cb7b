"""Image-to-text evaluation: captions retrieved by cosine and reranked with the image's tokens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edje_qdrant.evaluation.gallery import Gallery
from edje_qdrant.evaluation.nearest import nearest
from edje_qdrant.evaluation.rankings import Rankings
from edje_qdrant.model import EDJEModel
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.types import ImageEncoding

__all__ = ["Encodings", "encode_captions", "image_to_text", "pairs_at_once"]

#: Function from rows of the gallery to the stored encodings of these images, in order.
Encodings = Callable[[NDArray[np.int64]], ImageEncoding]

_TOKEN_BYTES = 256 << 20
_TEXTS = 256


def image_to_text(
    gallery: Gallery,
    model: EDJEModel,
    encodings: Encodings,
    depth: int,
    *,
    reranker: Reranker | None = None,
    progress: bool = False,
) -> Rankings:
    """Rank the pool's captions for every image that is a query.

    A caption is right if it belongs to the image; the same text as a caption of another image is
    wrong, as in the published protocol. Captions of equal cosine keep the annotations' order.

    Args:
        gallery: Images and captions.
        model: Encodes captions and scores pairs.
        encodings: Reads embeddings and tokens of images.
        depth: Candidates for each image.
        reranker: Scores pairs; by default `Reranker(model)`.
        progress: Show a bar on stderr.
    """
    texts = encode_captions(model, gallery.captions)
    reranker = reranker or Reranker(model)
    asked = np.flatnonzero(gallery.asked)
    depth = min(depth, len(texts))
    shape = (len(asked), depth)
    candidates = np.empty(shape, np.int64)
    first, joint = np.empty(shape, np.float32), np.empty(shape, np.float32)
    step = max(1, pairs_at_once(model) // depth)
    with tqdm(total=len(asked), desc="images", unit=" queries", disable=not progress) as bar:
        for start in range(0, len(asked), step):
            rows = slice(start, start + step)
            images = encodings(asked[rows])
            candidates[rows], first[rows] = nearest(images.embeddings, texts, depth)
            found = candidates[rows].ravel()
            joint[rows] = reranker.score_pairs(
                [gallery.captions[caption] for caption in found],
                np.repeat(images.tokens, depth, axis=0),
            ).reshape(-1, depth)
            bar.update(len(images))
    starts = np.searchsorted(gallery.owner, asked, side="left")
    ends = np.searchsorted(gallery.owner, asked, side="right")
    return Rankings(
        direction="i2t",
        queries=[gallery.paths[row] for row in asked],
        answers=gallery.captions,
        candidates=candidates,
        first=first,
        joint=joint,
        right=gallery.owner[candidates] == asked[:, None],
        rights=[tuple(range(s, e)) for s, e in zip(starts.tolist(), ends.tolist(), strict=True)],
        clusters=asked,
        pool=len(texts),
    )


def encode_captions(model: EDJEModel, captions: tuple[str, ...]) -> NDArray[np.float32]:
    """Return `(n, d)` float32, unit length; each distinct text is encoded once."""
    distinct = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
    texts = [*distinct]
    encoded = [
        model.encode_texts(texts[start : start + _TEXTS]) for start in range(0, len(texts), _TEXTS)
    ]
    rows = np.array([distinct[caption] for caption in captions])
    embeddings: NDArray[np.float32] = np.concatenate(encoded)[rows]
    return embeddings


def pairs_at_once(model: EDJEModel) -> int:
    """Return the number of pairs whose tokens are held in memory at a time."""
    return max(1, _TOKEN_BYTES // (2 * model.config.num_tokens * model.config.token_dim))
