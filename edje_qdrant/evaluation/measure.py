"""Ask one model every question, by one of the two ways."""

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
from edje_qdrant.search.retriever import TwoStageRetriever

__all__ = ["Contender", "measure"]


@dataclass(frozen=True, slots=True, eq=False)
class Contender:
    """Hold a model that takes part.

    Attributes:
        label: What it is called in tables; no two alike.
        model: The model.
        collection: An open collection of its own to measure in; missing images are added to it.
            Without one, a collection is made below the output folder, and used again next time.
        codec: How a collection made for it stores tokens. One that needs fitting is fitted to
            the gallery's own.
    """

    label: str
    model: EDJEModel
    collection: ImageCollection | None = None
    codec: str = "float16"


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
    """Rank everything once, at the largest number of candidates.

    Args:
        contender: The model.
        collection: Holds the gallery's images, written by the model.
        gallery: Images and captions.
        directions: Which to measure.
        num_candidates: Sweep; single searches are timed at each, from text to image, unless
            in memory.
        in_memory: Take exact cosines and large batches in memory instead of the vector engine.
        progress: Show bars on stderr.
    """
    depth = max(*num_candidates, DEEPEST)
    model = contender.model
    pictures = memory.read_out(gallery, collection) if in_memory else None
    measured: dict[Direction, Measured] = {}
    for direction in directions:
        milliseconds: dict[int, float] = {}
        rankings: Rankings
        if direction == "i2t":
            encodings = (
                collection_path.stored_encodings(gallery, collection)
                if pictures is None
                else memory.array_encodings(pictures)
            )
            rankings = image_to_text(gallery, model, encodings, depth, progress=progress)
        elif pictures is not None:
            rankings = memory.text_to_image(gallery, model, pictures, depth, progress=progress)
        else:
            retriever = TwoStageRetriever(collection, model)
            rankings = collection_path.text_to_image(gallery, retriever, depth, progress=progress)
            milliseconds = {
                number: collection_path.query_milliseconds(gallery, retriever, number)
                for number in steps(num_candidates, rankings.depth)
            }
        measured[direction] = Measured(
            model=contender.label,
            tokens_per_picture=collection.contract.num_tokens,
            bytes_per_picture=collection.bytes_per_image(),
            rankings=rankings,
            milliseconds=milliseconds,
        )
    return measured
