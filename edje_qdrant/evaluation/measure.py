"""Measurement of one model on all queries, through a retriever or in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.evaluation import ask_collection as collection_path
from edje_qdrant.evaluation import ask_in_memory as memory
from edje_qdrant.evaluation.gallery import Gallery
from edje_qdrant.evaluation.image_to_text import image_to_text
from edje_qdrant.evaluation.metrics_table import Measured, steps
from edje_qdrant.evaluation.rankings import DEEPEST, Direction, Rankings
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.inference.precision import Precision
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.search.retriever import TwoStageRetriever

__all__ = ["Contender", "measure"]


@dataclass(frozen=True, slots=True, eq=False)
class Contender:
    """Hold a model to evaluate.

    Attributes:
        label: Its name in tables; unique.
        model: The model.
        collection: An open collection written by this model; missing images are added to it. By
            default a collection is created below the output folder and reused by later runs.
        codec: Codec of a collection that is created. A codec with a codebook is fitted to the
            gallery's tokens.
        precision: Precision of the joint encoder; see `Reranker`.
    """

    label: str
    model: EDJEModel
    collection: ImageCollection | None = None
    codec: str = "float16"
    precision: Precision = "auto"


def measure(
    contender: Contender,
    collection: ImageCollection,
    gallery: Gallery,
    directions: Sequence[Direction],
    num_candidates: Sequence[int],
    *,
    in_memory: bool = False,
    progress: bool = False,
) -> dict[Direction, Measured]:
    """Rank all queries once, at the largest number of candidates.

    Args:
        contender: The model.
        collection: Contains the gallery's images, written by the model.
        gallery: Images and captions.
        directions: The directions to measure.
        num_candidates: Numbers of candidates; single text-to-image searches are timed at each,
            unless `in_memory` is set.
        in_memory: Use exact cosines and large batches in memory instead of the vector engine.
        progress: Show bars on stderr.
    """
    depth = max(*num_candidates, DEEPEST)
    model = contender.model
    reranker = Reranker(model, precision=contender.precision)
    images = memory.read_out(gallery, collection) if in_memory else None
    measured: dict[Direction, Measured] = {}
    for direction in directions:
        milliseconds: dict[int, float] = {}
        rankings: Rankings
        if direction == "i2t":
            encodings = (
                collection_path.stored_encodings(gallery, collection)
                if images is None
                else memory.array_encodings(images)
            )
            rankings = image_to_text(
                gallery, model, encodings, depth, reranker=reranker, progress=progress
            )
        elif images is not None:
            rankings = memory.text_to_image(
                gallery, model, images, depth, reranker=reranker, progress=progress
            )
        else:
            retriever = TwoStageRetriever(collection, model, reranker=reranker)
            rankings = collection_path.text_to_image(gallery, retriever, depth, progress=progress)
            milliseconds = {
                number: collection_path.query_milliseconds(gallery, retriever, number)
                for number in steps(num_candidates, rankings.depth)
            }
        measured[direction] = Measured(
            model=contender.label,
            tokens_per_image=collection.contract.num_tokens,
            bytes_per_image=collection.bytes_per_image(),
            precision=reranker.precision,
            rankings=rankings,
            milliseconds=milliseconds,
        )
    return measured
