"""Candidates for hits of different groups: frames of many videos, not of one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from edje_qdrant.index import Filter, beyond_groups, field_value, is_group
from edje_qdrant.types import Candidate

__all__ = ["group_key", "grouped"]

#: Searches the first stage again, with another filter, for that many candidates.
Again = Callable[[Filter, int], list[Candidate]]


def group_key(group: Any) -> str:
    """Return what equals another group's key if, and only if, the groups are the same."""
    return json.dumps(group, sort_keys=True)


def grouped(
    candidates: Sequence[Candidate],
    *,
    field: str,
    groups: int,
    num_candidates: int,
    filter: Filter | None,
    again: Again,
) -> list[Candidate]:
    """Return candidates of which no group takes more than its share, so that many groups show.

    A group's share is `num_candidates // groups`. Where a group has more than that, its others make
    way for further images of the first stage, which is asked again without the groups that are
    full, until there are enough candidates or no more images. Places that nobody else takes are
    given back.

    Args:
        candidates: Best first, `num_candidates` unless there are no more.
        field: The field that groups them; what lacks it stands for itself.
        groups: How many groups will be shown.
        num_candidates: Candidates to return, at most.
        filter: What the candidates were found with.
        again: Searches again.
    """
    share = max(1, num_candidates // groups)
    kept: list[Candidate] = []
    aside: list[Candidate] = []
    taken: Counter[str] = Counter()
    full: dict[str, Any] = {}
    batch, more = list(candidates), len(candidates) == num_candidates
    while batch:
        for candidate in batch:
            group = field_value(candidate.payload, field)
            key = group_key(group)
            # Only these can be asked to be left out; what is no group can fill all places.
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
        batch = again(beyond_groups(filter, field, [*full.values()], seen), wanted)
        more = len(batch) == wanted
    kept += aside[: num_candidates - len(kept)]
    kept.sort(key=lambda candidate: -candidate.score)
    return [replace(candidate, rank=rank) for rank, candidate in enumerate(kept, start=1)]
