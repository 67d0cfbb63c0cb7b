"""Ranking of what an engine found, the same on every engine."""

from __future__ import annotations

import math
from collections.abc import Iterable
from operator import itemgetter

from edje_qdrant.types import Candidate, Payload

__all__ = ["SLACK", "TIE", "rank"]

#: Cosines closer than this count as equal: engines sum float32 products in different orders.
TIE = 1e-6

#: Points to request beyond the limit, so that ties at the limit are resolved here too.
SLACK = 16

_score = itemgetter(1)


def rank(found: Iterable[tuple[str, float, Payload]], limit: int) -> list[Candidate]:
    """Rank `(id, cosine, payload)`, best first, equal cosines by id, and keep `limit`.

    Cosines within `TIE` of the best of their group are equal; all of the group get its value.
    """
    level, tied = math.inf, False
    ranked: list[tuple[float, str, Payload]] = []
    for image_id, score, payload in sorted(found, key=_score, reverse=True):
        if level - score > TIE:
            level = score
        else:
            tied = True
        ranked.append((level, image_id, payload))
    if tied:
        ranked.sort(key=lambda item: (-item[0], item[1]))
    return [
        Candidate(image_id, level, place, payload)
        for place, (level, image_id, payload) in enumerate(ranked[:limit], start=1)
    ]
