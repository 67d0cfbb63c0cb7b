"""Rank scored candidates as hits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.collection.references import user_payload
from edje_qdrant.index import field_value
from edje_qdrant.model.calibration import Calibration
from edje_qdrant.rerank.scorer import ScoredQuery, best_first
from edje_qdrant.search.duplicates import Looks
from edje_qdrant.search.fusion import DEFAULT_WEIGHTS, blend, reciprocal_ranks
from edje_qdrant.search.groups import group_key
from edje_qdrant.search.options import SearchOptions, fusion_of
from edje_qdrant.search.results import SearchHit
from edje_qdrant.types import Candidate, Candidates

__all__ = ["candidates_as_hits", "degraded_reason", "rank_candidates"]


def rank_candidates(
    query: ScoredQuery,
    settings: SearchOptions,
    calibration: Calibration | None,
    looks: Looks | None = None,
) -> Sequence[SearchHit]:
    """Rank all candidates of a query.

    Scored candidates are ordered by score, equal scores in first-stage order. A processed candidate
    without a score keeps its place among the processed ones. Candidates that were not processed
    follow in first-stage order. Those that were deleted are left out, and with `looks` those that
    are near-duplicates of a better one.
    """
    logits, count = query.logits, len(query.candidates)
    keys, fused = logits[: query.processed].astype(np.float64), None
    if fusion_of(settings) != "rerank":
        keys = fused = _fused(query, settings)
    order = [*best_first(keys), *range(query.processed, count)]
    deleted = {*query.deleted}
    if isinstance(query.candidates, Candidates):
        deleted.update(query.candidates.absent())
    if deleted:
        order = [row for row in order if row not in deleted]
    scores = _numbers(logits, count)
    if settings["min_score"] is not None:
        cutoff = _cutoff(settings, calibration)
        order = [row for row in order if (score := scores[row]) is not None and score >= cutoff]
    probabilities = None
    if calibration is not None and calibration.covers(query.text):
        known = ~np.isnan(logits)
        probabilities = np.full(count, np.nan)
        probabilities[known] = calibration.probability(logits[known])
    return candidates_as_hits(
        query.candidates,
        order,
        settings["group_by"],
        looks,
        scores=scores,
        probabilities=_numbers(probabilities, count),
        fusion_scores=_numbers(fused, count),
    )


def candidates_as_hits(
    candidates: Sequence[Candidate],
    order: Sequence[int],
    group_by: str | None,
    looks: Looks | None = None,
    *,
    scores: Sequence[float | None] | None = None,
    probabilities: Sequence[float | None] | None = None,
    fusion_scores: Sequence[float | None] | None = None,
) -> Sequence[SearchHit]:
    """Return candidates as ranked hits, only the best of each look and of each group.

    Args:
        candidates: `n` candidates, in first-stage order.
        order: Rows of the candidates to return, best first.
        group_by: The payload field that groups them; a candidate without it is its own group.
        looks: Finds near-duplicates, of which only the best is a hit; None to keep all.
        scores: `n` logits.
        probabilities: `n` probabilities of a match.
        fusion_scores: `n` scores of both stages together.
    """
    none = [None] * len(candidates)
    columns = scores or none, probabilities or none, fusion_scores or none
    duplicates: Mapping[int, tuple[str, ...]] = {}
    if looks is not None:
        duplicates = looks.collapsed(candidates, order)
        order = [*duplicates]
    if group_by is not None:
        order = _best_of_groups(candidates, order, group_by)
    return _LazyHits(candidates, order, columns, group_by, duplicates, range(1, len(order) + 1))


#: For each candidate: its logit, the probability of a match, and the score of both stages together.
_Columns = tuple[Sequence[float | None], Sequence[float | None], Sequence[float | None]]


@dataclass(frozen=True, slots=True, eq=False)
class _LazyHits(Sequence[SearchHit]):
    """Ranked hits, each made when it is used: most of them never are."""

    candidates: Sequence[Candidate]
    order: Sequence[int]
    columns: _Columns
    group_by: str | None
    duplicates: Mapping[int, tuple[str, ...]]
    ranks: range

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, index: int) -> SearchHit: ...
    @overload
    def __getitem__(self, index: slice) -> _LazyHits: ...
    def __getitem__(self, index: int | slice) -> SearchHit | _LazyHits:
        if isinstance(index, slice):
            return replace(self, order=self.order[index], ranks=self.ranks[index])
        row, rank = self.order[index], self.ranks[index]
        candidate = self.candidates[row]
        payload = user_payload(candidate.payload)
        scores, probabilities, fusion_scores = self.columns
        return SearchHit(
            candidate.image_id,
            scores[row],
            rank,
            candidate.score,
            candidate.rank,
            payload,
            probabilities[row],
            fusion_scores[row],
            None if self.group_by is None else field_value(payload, self.group_by),
            self.duplicates.get(row, ()),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return [*self] == [*other]

    __hash__ = None  # type: ignore[assignment]  # payloads have no hash either

    def __repr__(self) -> str:
        return repr((*self,))

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, ((*self,),)  # an engine's objects cannot be copied or pickled


def _best_of_groups(
    candidates: Sequence[Candidate], order: Sequence[int], group_by: str
) -> list[int]:
    """Return the rows of which no better one is of the same group."""
    kept: list[int] = []
    seen: set[str] = set()
    for row in order:
        group = field_value(user_payload(candidates[row].payload), group_by)
        if group is not None:
            key = group_key(group)
            if key in seen:
                continue
            seen.add(key)
        kept.append(row)
    return kept


def degraded_reason(query: ScoredQuery) -> str | None:
    """Return why a ranking is less than was requested; None if it is complete."""
    count, reasons = len(query.candidates), []
    if query.failed:
        error = next(iter(query.failed.values()))
        reasons.append(
            f"{len(query.failed)} of {count} candidates could not be scored and keep their "
            f"first-stage place: {error}"
        )
    if query.stop_reason is not None:
        left = count - query.processed
        reasons.append(
            f"{query.stop_reason}, so {left} of {count} candidates were not scored and follow in "
            "first-stage order"
        )
    return "; ".join(reasons) or None


def _fused(query: ScoredQuery, settings: SearchOptions) -> NDArray[np.float64]:
    """Return the fusion scores of the processed candidates; NaN where there is no logit."""
    logits = query.logits[: query.processed]
    known = np.flatnonzero(~np.isnan(logits))
    candidates = query.candidates
    fusion = fusion_of(settings)
    weights = settings["fusion_weights"] or DEFAULT_WEIGHTS[fusion]
    fused = np.full(len(logits), np.nan)
    if fusion == "rrf":
        # The order of the candidates, which is not that of their cosines if words were searched.
        places = -np.arange(len(logits), dtype=np.float32)[known]
        fused[known] = reciprocal_ranks(places, logits[known], weights)
        return fused
    if fusion == "words":
        if isinstance(candidates, Candidates):
            words = np.array(candidates.words or [0.0] * len(candidates))[known]
        else:
            words = np.array([candidate.words for candidate in candidates])[known]
        fused[known] = weights[0] * words + weights[1] * logits[known]
        return fused
    cosines = np.array(
        candidates.scores if isinstance(candidates, Candidates) else [c.score for c in candidates],
        np.float32,
    )[known]
    fused[known] = blend(cosines, logits[known], weights)
    return fused


def _cutoff(settings: SearchOptions, calibration: Calibration | None) -> float:
    if settings["min_score"] != "auto":
        assert isinstance(settings["min_score"], int | float)
        return float(settings["min_score"])
    assert calibration is not None  # the retriever has checked
    return calibration.cutoff


def _numbers(values: NDArray[Any] | None, count: int) -> list[float | None]:
    """Return `count` numbers; None for NaN and beyond the end of `values`."""
    given = [] if values is None else values.tolist()
    # Only NaN differs from itself; calling `np.isnan` for each value would take far longer.
    return [*[v if v == v else None for v in given], *[None] * (count - len(given))]
