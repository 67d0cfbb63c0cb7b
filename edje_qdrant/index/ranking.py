"""Turn what an engine found into a ranking that is the same on every engine."""

from __future__ import annotations

import math
from collections.abc import Iterable

from edje_qdrant.types import Candidate, Payload

__all__ = ["SLACK", "TIE", "rank"]

#: Cosines closer than this count as equal: engines add up float32 products in different orders.
TIE = 1e-6

#: Points to ask an engine for beyond the limit, so that ties across the cut are settled here too.
SLACK = 16


def rank(found: Iterable[tuple[str, float, Payload]], limit: int) -> list[Candidate]:
    """Rank `(id, cosine, payload)`, best first, equal cosines by id, and keep `limit`.

    Cosines within `TIE` of the best of their group are equal; all of the group get the best's.
    """
    level = math.inf
    keyed: list[tuple[float, str, Payload]] = []
    for image_id, score, payload in sorted(found, key=lambda item: -item[1]):
        if level - score > TIE:
            level = score
        keyed.append((-level, image_id, payload))
    keyed.sort(key=lambda item: item[:2])
    return [
        Candidate(image_id, -negated, place, payload)
        for place, (negated, image_id, payload) in enumerate(keyed[:limit], start=1)
    ]
