"""Ranking of what an engine found, the same on every engine."""

from __future__ import annotations

import math
from collections.abc import Iterable
from operator import attrgetter

from edje_qdrant.index.backend import Hit
from edje_qdrant.types import Candidates, Payload

__all__ = ["SLACK", "TIE", "rank"]

#: Cosines closer than this count as equal: engines sum float32 products in different orders.
TIE = 1e-6

#: Points to request beyond the limit, so that ties at the limit are resolved here too.
SLACK = 16

_score = attrgetter("score")


def rank(found: Iterable[Hit], limit: int) -> Candidates:
    """Rank what an engine found, best first, equal cosines by id, and keep `limit`.

    Cosines within `TIE` of the best of their group are equal; all of the group get its value. Ids
    and payloads are read only where they are needed.
    """
    hits = sorted(found, key=_score, reverse=True)
    levels: list[float] = []
    level, tied = math.inf, False
    for hit in hits:
        score = hit.score
        if level - score > TIE:
            level = score
        else:
            tied = True
        levels.append(level)
    if tied:
        ids = [str(hit.id) for hit in hits]
        order = sorted(range(len(hits)), key=lambda at: (-levels[at], ids[at]))
        hits = [hits[at] for at in order]  # their levels are in order already
    kept = hits[:limit]

    def point(at: int) -> tuple[str, Payload]:
        return str(kept[at].id), kept[at].payload or {}

    return Candidates(levels[:limit], point)
