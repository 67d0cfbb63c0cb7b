"""Evaluation through `TwoStageRetriever`: search results, stored encodings and search times."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.evaluation.gallery import Gallery
from edje_qdrant.evaluation.image_to_text import Encodings
from edje_qdrant.evaluation.rankings import Rankings, caption_rankings
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.types import ImageEncoding

__all__ = ["query_milliseconds", "stored_encodings", "text_to_image"]

_QUERIES = 64
_TIMED = 20


def text_to_image(
    gallery: Gallery, retriever: TwoStageRetriever, depth: int, *, progress: bool = False
) -> Rankings:
    """Search with every caption that is a query.

    Images in the collection that are not in the gallery count as wrong answers to every caption.

    Args:
        gallery: Images and captions; all its images are in the collection.
        retriever: Searches the collection.
        depth: Candidates for each caption.
        progress: Show a bar on stderr.
    """
    asked = np.flatnonzero(gallery.asked[gallery.owner])
    pool = retriever.collection.count()
    depth = min(depth, pool)
    shape = (len(asked), depth)
    candidates = np.full(shape, -1, np.int64)
    first = np.full(shape, -np.inf, np.float32)
    joint = np.full(shape, -np.inf, np.float32)
    rows = {image_id: row for row, image_id in enumerate(gallery.image_ids)}
    answers = [*gallery.paths]
    with tqdm(total=len(asked), desc="captions", unit=" queries", disable=not progress) as bar:
        for start in range(0, len(asked), _QUERIES):
            texts = [gallery.captions[row] for row in asked[start : start + _QUERIES]]
            results = retriever.search_batch(texts, top_k=depth, num_candidates=depth)
            for query, result in enumerate(results, start=start):
                for hit in result:
                    place = hit.retrieval_rank - 1
                    if hit.image_id not in rows:
                        rows[hit.image_id] = len(answers)
                        answers.append(str(hit.payload.get("path", hit.image_id)))
                    candidates[query, place] = rows[hit.image_id]
                    first[query, place] = hit.retrieval_score
                    assert hit.score is not None  # damaged tokens raise an error
                    joint[query, place] = hit.score
            bar.update(len(texts))
    return caption_rankings(gallery, asked, answers, candidates, first, joint, pool=pool)


def stored_encodings(gallery: Gallery, collection: ImageCollection) -> Encodings:
    """Return a function that reads embeddings and tokens of images from the collection."""

    def read(rows: NDArray[np.int64]) -> ImageEncoding:
        return collection.encodings([gallery.image_ids[row] for row in rows])

    return read


def query_milliseconds(
    gallery: Gallery, retriever: TwoStageRetriever, num_candidates: int
) -> float:
    """Return the median time of single searches, one after another, in milliseconds.

    At most twenty captions are searched, evenly spaced; the first search is a warm-up and is not
    counted.
    """
    asked = np.flatnonzero(gallery.asked[gallery.owner])
    chosen = asked[np.linspace(0, len(asked) - 1, min(_TIMED, len(asked))).astype(int)]
    texts = [gallery.captions[row] for row in chosen]
    spent = [
        retriever.search(text, top_k=1, num_candidates=num_candidates).timings.total
        for text in [texts[0], *texts]
    ]
    return float(np.median(spent[1:]))
