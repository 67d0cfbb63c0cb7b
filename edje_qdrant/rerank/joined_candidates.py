"""Candidates of several queries as one sequence, each made when it is first used."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import overload

from edje_qdrant.rerank.collector import paused_collector
from edje_qdrant.types import Candidate, Candidates

__all__ = ["JoinedCandidates"]


class JoinedCandidates(Sequence[Candidate]):
    """Join parts of several queries' candidates without making them.

    Args:
        parts: Candidates of a query, and the first and the last place (exclusive) to take.
    """

    def __init__(self, parts: Sequence[tuple[Sequence[Candidate], int, int]]) -> None:
        self._parts = parts
        self._ends = [*accumulate(stop - start for _, start, stop in parts)]

    @cached_property
    def token_keys(self) -> list[str] | None:
        """Return the key of each candidate's tokens; None if the first stage does not know them."""
        keys: list[str] = []
        for candidates, start, stop in self._parts:
            if not isinstance(candidates, Candidates) or candidates.token_keys is None:
                return None
            keys += candidates.token_keys[start:stop]
        return keys

    @property
    def has_payloads(self) -> bool:
        """Return whether the first stage read the payloads with the candidates."""
        return self.token_keys is None

    def read_payloads(self) -> None:
        """Read the payloads that the first stage has not read, for all queries."""
        with paused_collector():
            for candidates, _, _ in self._parts:
                if isinstance(candidates, Candidates):
                    candidates.absent()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Candidate]:
        for candidates, start, stop in self._parts:
            yield from candidates[start:stop]

    @overload
    def __getitem__(self, index: int) -> Candidate: ...
    @overload
    def __getitem__(self, index: slice) -> list[Candidate]: ...
    def __getitem__(self, index: int | slice) -> Candidate | list[Candidate]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = index if index >= 0 else index + len(self)
        if not 0 <= at < len(self):
            raise IndexError(f"there are {len(self)} candidates, and none at {index}")
        part = bisect_right(self._ends, at)
        candidates, _, stop = self._parts[part]
        return candidates[stop - (self._ends[part] - at)]
