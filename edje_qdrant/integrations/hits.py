"""Shared by the integrations: the fields of a hit, and documents ranked by their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.checks import check_number
from edje_qdrant.errors import ConfigError
from edje_qdrant.model.calibration import match_word
from edje_qdrant.rerank.scorer import best_first
from edje_qdrant.search.results import SearchHit, SearchResult

__all__ = [
    "ImageScorer",
    "hit_content",
    "hit_fields",
    "image_ids_of",
    "rank_images",
    "reranked_fields",
]

# Fields of a hit that depend on options of the search.
_NOT_PASSED_ON = ("fusion_score", "group", "duplicates")


@runtime_checkable
class ImageScorer(Protocol):
    """Scores images by their ids: `TwoStageRetriever` or `AttachedCollection`."""

    def score(self, text: str, image_ids: Sequence[Any]) -> NDArray[np.float32]:
        """Return `(n,)` logits of a text and `n` images, in order."""


def hit_fields(hit: SearchHit, result: SearchResult) -> dict[str, Any]:
    """Return a hit as a JSON object: id, path, both scores and ranks, payload.

    If the result is degraded, or the text was cut, each of its hits says so and contains the
    reason; each also has the joint encoder's precision.
    """
    fields = {name: value for name, value in hit.as_dict().items() if name not in _NOT_PASSED_ON}
    return {
        **fields,
        "payload": dict(hit.payload),
        "path": hit.payload.get("path"),
        "degraded": result.degraded,
        "truncated": result.truncated,
        "reason": result.reason,
        "precision": result.precision,
    }


def hit_content(hit: SearchHit, field: str | None) -> str:
    """Return the text of an image: a payload field, or else its path or id.

    Args:
        hit: The image.
        field: Name of the payload field, such as `caption`; None for the path.
    """
    value = None if field is None else hit.payload.get(field)
    return str(hit.payload.get("path", hit.image_id) if value is None else value)


def image_ids_of(fields: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    """Return the image id in the fields of each document.

    Raises:
        ConfigError: A document has no id; names the first.
    """
    missing = [place for place, each in enumerate(fields) if each.get(key) is None]
    if missing:
        raise ConfigError(
            f"document {missing[0]} ({len(missing)} of {len(fields)} in all) has no {key!r} in its "
            "metadata, which names the image to score; name the key that holds the id"
        )
    return [each[key] for each in fields]


def reranked_fields(
    fields: Mapping[str, Any], scorer: ImageScorer, text: str, score: float, rank: int
) -> dict[str, Any]:
    """Return the metadata of a reranked document: its own, with the new score and rank.

    `probability` and `match` are those of the new score; None if the scorer's model has no
    calibration for such texts. The other fields still describe the search that found the document.
    """
    calibration = getattr(getattr(scorer, "model", None), "calibration", None)
    probability = None
    if calibration is not None and calibration.covers(text):
        probability = float(calibration.probability(score))
    return {
        **fields,
        "score": score,
        "rank": rank,
        "probability": probability,
        "match": match_word(probability),
    }


def rank_images(
    scorer: ImageScorer, text: str, image_ids: Sequence[Any], top_n: int | None
) -> list[tuple[int, float]]:
    """Return `(row, logit)` of images, best first, equal logits in the given order.

    Args:
        scorer: Scores the images.
        text: Description of the images.
        image_ids: `n` ids.
        top_n: Number of images to return; None for all.

    Raises:
        ConfigError: `top_n` is below 1, or the text has no word in it.
        TokensNotFoundError: An image has no tokens; names it.
        StoreError: Tokens cannot be read.
    """
    check_number("top_n", top_n, optional=True)
    if not image_ids:
        return []
    logits = scorer.score(text, image_ids)
    return [(row, float(logits[row])) for row in best_first(logits)[:top_n]]
