"""From candidates and their scores to a ranking, and from there to a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.calibration import Calibration
from edje_qdrant.collection import user_payload
from edje_qdrant.index import field_value
from edje_qdrant.search.fusion import DEFAULT_WEIGHTS, blend, reciprocal_ranks
from edje_qdrant.search.grouping import group_key
from edje_qdrant.search.scorer import Scored
from edje_qdrant.search.settings import SearchSettings
from edje_qdrant.types import Candidate, SearchHit

__all__ = ["hits_of", "in_first_stage_order", "why_degraded"]


def hits_of(
    candidates: Sequence[Candidate],
    scored: Scored,
    settings: SearchSettings,
    calibration: Calibration | None,
) -> tuple[SearchHit, ...]:
    """Rank all candidates of a query.

    Those scored come by score, equal ones in the first stage's order. One that was reached and has
    no score keeps its place among those reached; what was not reached follows them all, in the
    first stage's order.
    """
    logits = scored.logits[: scored.reached]
    keys, fused = logits.astype(np.float64), None
    if settings.fusion != "rerank":
        keys = fused = _fused(candidates, logits, settings)
    order = [*_order(keys), *range(scored.reached, len(candidates))]
    probabilities = None
    if calibration is not None:
        probabilities = np.full(len(candidates), np.nan)
        known = ~np.isnan(scored.logits)
        probabilities[known] = calibration.probability(scored.logits[known])
    hits = [
        SearchHit(
            image_id=candidates[row].image_id,
            score=_number(scored.logits, row),
            rank=0,  # set below, once it is known what stays
            retrieval_score=candidates[row].score,
            retrieval_rank=candidates[row].rank,
            payload=user_payload(candidates[row].payload),
            probability=_number(probabilities, row),
            fusion_score=_number(fused, row),
        )
        for row in order
    ]
    if settings.min_score is not None:
        cutoff = _cutoff(settings, calibration)
        hits = [hit for hit in hits if hit.score is not None and hit.score >= cutoff]
    return numbered(hits, settings.group_by)


def in_first_stage_order(
    candidates: Sequence[Candidate], group_by: str | None = None
) -> tuple[SearchHit, ...]:
    """Return hits without scores, as the first stage found them."""
    return numbered(
        [
            SearchHit(
                image_id=candidate.image_id,
                score=None,
                rank=0,
                retrieval_score=candidate.score,
                retrieval_rank=candidate.rank,
                payload=user_payload(candidate.payload),
            )
            for candidate in candidates
        ],
        group_by,
    )


def numbered(
    hits: Sequence[SearchHit], group_by: str | None, *, first: int = 1
) -> tuple[SearchHit, ...]:
    """Return hits with their places filled in, of each group the best alone.

    Args:
        hits: Best first.
        group_by: The field that groups them; what lacks it stands for itself.
        first: Place of the first one.
    """
    kept: list[SearchHit] = []
    seen: set[str] = set()
    for hit in hits:
        group = None if group_by is None else field_value(hit.payload, group_by)
        if group is not None:
            key = group_key(group)
            if key in seen:
                continue
            seen.add(key)
        kept.append(_placed(hit, first + len(kept), group))
    return tuple(kept)


def why_degraded(scored: Scored, count: int) -> str | None:
    """Say why a ranking is less than was asked for; None where it is not.

    Args:
        scored: What became of the query's candidates.
        count: How many there are.
    """
    reasons = []
    if scored.failed:
        error = next(iter(scored.failed.values()))
        reasons.append(
            f"{len(scored.failed)} of {count} candidates could not be scored and keep their "
            f"first-stage place: {error}"
        )
    if scored.cut is not None:
        left = count - scored.reached
        reasons.append(
            f"{scored.cut}, so {left} of {count} candidates were not scored and follow in "
            "first-stage order"
        )
    return "; ".join(reasons) or None


def _fused(
    candidates: Sequence[Candidate], logits: NDArray[np.float32], settings: SearchSettings
) -> NDArray[np.float64]:
    """Return the scores of those reached, NaN where there is no logit."""
    known = np.flatnonzero(~np.isnan(logits))
    cosines = np.array([candidates[int(row)].score for row in known], np.float32)
    weights = settings.fusion_weights or DEFAULT_WEIGHTS[settings.fusion]
    together = reciprocal_ranks if settings.fusion == "rrf" else blend
    fused = np.full(len(logits), np.nan)
    fused[known] = together(cosines, logits[known], weights)
    return fused


def _order(keys: NDArray[np.float64]) -> list[int]:
    """Sort rows by key, highest first; what has none stays where it was."""
    best = iter([row for row in np.argsort(-keys, kind="stable") if not np.isnan(keys[row])])
    return [row if np.isnan(keys[row]) else int(next(best)) for row in range(len(keys))]


def _cutoff(settings: SearchSettings, calibration: Calibration | None) -> float:
    if settings.min_score != "auto":
        assert isinstance(settings.min_score, int | float)
        return float(settings.min_score)
    assert calibration is not None  # the retriever has checked
    return calibration.cutoff


def _number(values: NDArray[Any] | None, row: int) -> float | None:
    if values is None or row >= len(values) or np.isnan(values[row]):
        return None
    return float(values[row])


def _placed(hit: SearchHit, rank: int, group: Any) -> SearchHit:
    return SearchHit(
        hit.image_id,
        hit.score,
        rank,
        hit.retrieval_score,
        hit.retrieval_rank,
        hit.payload,
        hit.probability,
        hit.fusion_score,
        group,
    )
