"""From candidates and their scores to a ranking, and from there to a result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.collection.collection import user_payload
from edje_qdrant.index import field_value
from edje_qdrant.model.calibration import Calibration
from edje_qdrant.search.fusion import DEFAULT_WEIGHTS, blend, reciprocal_ranks
from edje_qdrant.search.groups import group_key
from edje_qdrant.search.options import SearchSettings
from edje_qdrant.search.results import SearchHit
from edje_qdrant.search.scorer import Scored
from edje_qdrant.types import Candidate

__all__ = ["best_first", "hits_of", "in_first_stage_order", "why_degraded"]


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
    order = [*best_first(keys), *range(scored.reached, len(candidates))]
    probabilities = None
    if calibration is not None:
        probabilities = np.full(len(candidates), np.nan)
        known = ~np.isnan(scored.logits)
        probabilities[known] = calibration.probability(scored.logits[known])
    count = len(candidates)
    scores = _numbers(scored.logits, count)
    if settings.min_score is not None:
        cutoff = _cutoff(settings, calibration)
        order = [row for row in order if (score := scores[row]) is not None and score >= cutoff]
    of_fusion = _numbers(fused, count)
    return _numbered(
        candidates, order, scores, _numbers(probabilities, count), of_fusion, settings.group_by
    )


def in_first_stage_order(
    candidates: Sequence[Candidate], group_by: str | None = None
) -> tuple[SearchHit, ...]:
    """Return hits without scores, as the first stage found them."""
    none: list[float | None] = [None] * len(candidates)
    return _numbered(candidates, range(len(candidates)), none, none, none, group_by)


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


def best_first(keys: NDArray[np.floating[Any]]) -> list[int]:
    """Sort rows by key, highest first; what has none stays where it was."""
    # NaN sorts behind all numbers.
    best: list[int] = np.argsort(-keys, kind="stable").tolist()
    missing = np.isnan(keys)
    if not missing.any():
        return best
    known = iter(best)
    return [row if gone else next(known) for row, gone in enumerate(missing.tolist())]


def _cutoff(settings: SearchSettings, calibration: Calibration | None) -> float:
    if settings.min_score != "auto":
        assert isinstance(settings.min_score, int | float)
        return float(settings.min_score)
    assert calibration is not None  # the retriever has checked
    return calibration.cutoff


def _numbers(values: NDArray[Any] | None, count: int) -> list[float | None]:
    """Return `count` numbers, None for NaN and for what is not there."""
    given = [] if values is None else values.tolist()
    # What is not equal to itself is NaN; asking numpy of each would take longer than all the rest.
    return [*[v if v == v else None for v in given], *[None] * (count - len(given))]


def _numbered(
    candidates: Sequence[Candidate],
    order: Iterable[int],
    scores: Sequence[float | None],
    probabilities: Sequence[float | None],
    fused: Sequence[float | None],
    group_by: str | None,
) -> tuple[SearchHit, ...]:
    """Return hits with their places, of each group the best alone.

    Args:
        candidates: As the first stage found them.
        order: Rows of those to return, best first.
        scores: A score a candidate.
        probabilities: A probability a candidate.
        fused: A score of both stages a candidate.
        group_by: The field that groups them; what lacks it stands for itself.
    """
    hits: list[SearchHit] = []
    seen: set[str] = set()
    for row in order:
        candidate = candidates[row]
        payload = user_payload(candidate.payload)
        group = None if group_by is None else field_value(payload, group_by)
        if group is not None:
            key = group_key(group)
            if key in seen:
                continue
            seen.add(key)
        hits.append(
            SearchHit(
                candidate.image_id,
                scores[row],
                len(hits) + 1,
                candidate.score,
                candidate.rank,
                payload,
                probabilities[row],
                fused[row],
                group,
            )
        )
    return tuple(hits)
