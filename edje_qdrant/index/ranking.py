"""Ranking of what an engine found, the same on every engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter

from edje_qdrant.index.backend import FusedHit, Hit
from edje_qdrant.types import Candidates, Payload

__all__ = ["SLACK", "TIE", "levelled", "rank", "rank_fused"]

#: Cosines closer than this count as equal: engines sum float32 products in different orders.
TIE = 1e-6

#: Points to request beyond the limit, so that ties at the limit are resolved here too.
SLACK = 16

_score = attrgetter("score")

# Digits of fused ranks that every engine computes alike: some use 32 bits, others 64.
_DIGITS = 6


def rank(found: Iterable[Hit], limit: int) -> Candidates:
    """Rank what an engine found, best first, equal cosines by id, and keep `limit`.

    Cosines within `TIE` of the best of their group are equal; all of the group get its value. Ids
    and payloads are read only where they are needed.
    """
    hits = sorted(found, key=_score, reverse=True)
    levels, order = levelled([hit.score for hit in hits], lambda at: str(hits[at].id))
    kept = [hits[at] for at in order[:limit]]

    def point(at: int) -> tuple[str, Payload]:
        return str(kept[at].id), kept[at].payload or {}

    return Candidates(levels[:limit], point)


def rank_fused(found: Iterable[FusedHit], limit: int) -> Candidates:
    """Rank what an engine found by embeddings and words, best first, and keep `limit`.

    The order is that of the fused ranks; of equal ones, the higher cosine comes first, then the
    lower id. The candidates' scores are cosines, which do not descend here.
    """
    hits = sorted(found, key=lambda hit: (-round(hit.fused, _DIGITS), -hit.score, str(hit.id)))
    kept = hits[:limit]

    def point(at: int) -> tuple[str, Payload]:
        return str(kept[at].id), kept[at].payload or {}

    return Candidates([hit.score for hit in kept], point, words=[hit.words for hit in kept])


def levelled(
    cosines: Sequence[float], id_at: Callable[[int], str]
) -> tuple[list[float], Sequence[int]]:
    """Level near-equal cosines, and order equal ones by id.

    Args:
        cosines: `n` cosines, descending.
        id_at: Returns the id at a place; called only if there are equal ones.

    Returns:
        The `n` levelled cosines, descending, and the place of each among `cosines`.
    """
    levels: list[float] = []
    level, tied = math.inf, False
    for cosine in cosines:
        if level - cosine > TIE:
            level = cosine
        else:
            tied = True
        levels.append(level)
    places = range(len(levels))
    if not tied:
        return levels, places
    return levels, sorted(places, key=lambda at: (-levels[at], id_at(at)))
