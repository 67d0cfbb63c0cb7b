from __future__ import annotations

from collections.abc import Sequence

import pytest

from edje_qdrant.rerank.joined_candidates import JoinedCandidates
from edje_qdrant.types import Candidate, Candidates


def candidates(name: str, count: int, keys: Sequence[str] | None = None) -> Candidates:
    return Candidates(
        [1 - place / 10 for place in range(count)],
        lambda place: (f"{name}{place}", {}),
        token_keys=keys,
    )


def test_parts_of_several_queries_are_one_sequence() -> None:
    made = [Candidate("c", 0.5, 1, {})]
    joined = JoinedCandidates(
        [(candidates("a", 4), 1, 3), (made, 0, 1), (candidates("b", 3), 2, 2),
         (candidates("b", 3), 0, 2)]
    )  # fmt: skip
    expected = ["a1", "a2", "c", "b0", "b1"]
    assert len(joined) == 5
    assert [c.image_id for c in joined] == expected
    assert [joined[place].image_id for place in range(5)] == expected
    assert [joined[place - 5].image_id for place in range(5)] == expected
    assert [c.image_id for c in joined[1:4]] == expected[1:4]
    for place in (5, -6):
        with pytest.raises(IndexError, match="5 candidates"):
            joined[place]
    assert len(JoinedCandidates([])) == 0
    assert [*JoinedCandidates([])] == []


def test_keys_are_joined_if_all_are_known() -> None:
    known = candidates("a", 3, ["x", "y", "z"])
    assert JoinedCandidates([(known, 1, 3), (known, 0, 1)]).token_keys == ["y", "z", "x"]
    assert JoinedCandidates([(known, 0, 3), (candidates("b", 1), 0, 1)]).token_keys is None
    assert JoinedCandidates([([*known], 0, 3)]).token_keys is None


def test_payloads_are_read_for_every_query_when_asked() -> None:
    read: list[str] = []

    def absent(name: str) -> Sequence[int]:
        read.append(name)
        return ()

    parts = [
        (Candidates([1.0], lambda _: ("a", {}), token_keys=["k"], absent=lambda n=name: absent(n)),
         0, 1)
        for name in "ab"
    ]  # fmt: skip
    joined = JoinedCandidates(parts)
    assert not joined.has_payloads
    assert read == []
    joined.read_payloads()
    assert read == ["a", "b"]
    assert JoinedCandidates([(candidates("a", 1), 0, 1)]).has_payloads
