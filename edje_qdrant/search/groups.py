"""Candidates of several groups, such as frames of many videos instead of one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from edje_qdrant.index import Filter, beyond_groups, field_value, is_group
from edje_qdrant.types import Candidate

__all__ = ["diversified", "group_key"]

#: Searches the first stage with another filter, for a number of candidates.
Nearest = Callable[[Filter, int], Sequence[Candidate]]


def group_key(group: Any) -> str:
    """Return a text that is equal for equal groups only."""
    return json.dumps(group, sort_keys=True)


def diversified(
    candidates: Sequence[Candidate],
    *,
    field: str,
    groups: int,
    num_candidates: int,
    filter: Filter | None,
    nearest: Nearest,
    by_score: bool = True,
) -> list[Candidate]:
    """Return candidates of which no group takes more than its share.

    A group's share is `num_candidates // groups`. Further candidates of a group that is full are
    replaced: the first stage is searched again without the full groups, until there are enough
    candidates or no more images. Places that stay free go back to the full groups.

    Args:
        candidates: Best first, `num_candidates` unless there are no more.
        field: The payload field that groups them; a candidate without it is its own group.
        groups: Number of groups that will be returned.
        num_candidates: Maximum number of candidates to return.
        filter: The filter that the candidates were found with.
        nearest: Searches the first stage.
        by_score: Whether scores decide the order; if not, candidates stay in the order in which
            they were found.
    """
    share = max(1, num_candidates // groups)
    kept: list[Candidate] = []
    aside: list[Candidate] = []
    taken: Counter[str] = Counter()
    full: dict[str, Any] = {}
    batch, more = candidates, len(candidates) == num_candidates
    while batch:
        for candidate in batch:
            group = field_value(candidate.payload, field)
            key = group_key(group)
            # Only these can be excluded by a filter; other values are not limited.
            if is_group(group):
                if taken[key] == share:
                    full[key] = group
                    aside.append(candidate)
                    continue
                taken[key] += 1
            kept.append(candidate)
        wanted = num_candidates - len(kept)
        if not more or wanted == 0 or not full:
            break
        seen = [candidate.image_id for candidate in kept]
        batch = nearest(beyond_groups(filter, field, [*full.values()], seen), wanted)
        more = len(batch) == wanted
    kept += aside[: num_candidates - len(kept)]
    if by_score:
        kept.sort(key=lambda candidate: -candidate.score)
    return [replace(candidate, rank=rank) for rank, candidate in enumerate(kept, start=1)]
