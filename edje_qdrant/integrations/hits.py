"""What the plugs have in common: a hit as plain fields, and documents ranked by their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.checks import check_number
from edje_qdrant.errors import ConfigError
from edje_qdrant.search.results import SearchHit, SearchResult

__all__ = ["ImageScorer", "best_first", "hit_content", "hit_fields", "image_ids_of"]


@runtime_checkable
class ImageScorer(Protocol):
    """Score images that are known by an id: `TwoStageRetriever`, or `AttachedCollection`."""

    def score(self, text: str, image_ids: Sequence[Any]) -> NDArray[np.float32]:
        """Return `(n,)` logits of a text and `n` images, in order."""


def hit_fields(hit: SearchHit, result: SearchResult) -> dict[str, Any]:
    """Return a hit as a JSON object: id, path, both scores and ranks, payload.

    Where the result is degraded, `reason` says why, in each of its hits.
    """
    payload = dict(hit.payload)
    return {
        "image_id": hit.image_id,
        "path": payload.get("path"),
        "score": hit.score,
        "rank": hit.rank,
        "retrieval_score": hit.retrieval_score,
        "retrieval_rank": hit.retrieval_rank,
        "probability": hit.probability,
        "degraded": result.degraded,
        "reason": result.reason,
        "payload": payload,
    }


def hit_content(hit: SearchHit, field: str | None) -> str:
    """Return what stands for an image as text: a payload field, or else its path or id.

    Args:
        hit: The image.
        field: Of the payload, such as `caption`; None for the path.
    """
    value = None if field is None else hit.payload.get(field)
    return str(hit.payload.get("path", hit.image_id) if value is None else value)


def image_ids_of(fields: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    """Return the image's id that each document's fields hold.

    Raises:
        ConfigError: One holds none; says which.
    """
    missing = [place for place, each in enumerate(fields) if each.get(key) is None]
    if missing:
        raise ConfigError(
            f"document {missing[0]} ({len(missing)} of {len(fields)} in all) has no {key!r} in its "
            "metadata, which names the image to score; name the key that holds the id"
        )
    return [each[key] for each in fields]


def best_first(
    scorer: ImageScorer, text: str, image_ids: Sequence[Any], top_n: int | None
) -> list[tuple[int, float]]:
    """Return `(place, logit)` of images, best first, equal ones in the order given.

    Args:
        scorer: Scores.
        text: What the images should show.
        image_ids: `n` ids.
        top_n: How many to return; None for all.

    Raises:
        ConfigError: `top_n` is below 1, or the text has no word in it.
        TokensNotFoundError: An image has no tokens; names it.
        StoreError: Tokens cannot be read.
    """
    check_number("top_n", top_n, optional=True)
    if not image_ids:
        return []
    logits = scorer.score(text, image_ids)
    order = np.argsort(-logits, kind="stable")[:top_n]
    return [(int(place), float(logits[place])) for place in order]
