from __future__ import annotations

import pickle

import pytest

from edje_qdrant.index.backend import Found
from edje_qdrant.index.ranking import rank


def test_equal_cosines_go_by_id() -> None:
    found = [
        Found("b", 0.5, {"n": 1}),
        Found("c", 0.9),
        Found("a", 0.5 - 6e-8, {"n": 2}),
        Found("d", 0.5),
    ]
    ranked = rank(found, 3)
    assert [(c.image_id, c.rank, c.score) for c in ranked] == [
        ("c", 1, 0.9),
        ("a", 2, 0.5),
        ("b", 3, 0.5),
    ]
    assert ranked[1].payload == {"n": 2}


def test_a_slope_of_near_ties_is_no_tie() -> None:
    found = [Found(f"{9 - n}", 0.5 - n * 0.6e-6) for n in range(9)]
    ranked = rank(found, 9)
    # Only neighbours are within a millionth of each other: pairs change places, no more.
    assert "".join(c.image_id for c in ranked) == "896745231"
    assert [c.score for c in ranked] == sorted((c.score for c in ranked), reverse=True)
    assert ranked[0].score - ranked[-1].score > 3e-6


def test_nothing_found() -> None:
    assert rank([], 5) == []


class Costly:
    """A hit that counts how often its id and its payload are read."""

    def __init__(self, point_id: str, score: float) -> None:
        self._id, self.score, self.read = point_id, score, list[str]()

    @property
    def id(self) -> str:
        self.read.append("id")
        return self._id

    @property
    def payload(self) -> dict[str, str]:
        self.read.append("payload")
        return {"own": self._id}


def test_ids_and_payloads_are_read_where_they_are_used() -> None:
    hits = [Costly(name, 1.0 - place / 10) for place, name in enumerate("cbade")]
    ranked = rank(hits, 4)
    assert len(ranked) == 4
    assert ranked.scores == [1.0, 0.9, 0.8, 0.7]
    assert [hit.read for hit in hits] == [[]] * 5
    assert (ranked[1].image_id, ranked[1].rank, ranked[1].payload) == ("b", 2, {"own": "b"})
    assert ranked[1] is ranked[1] is ranked[-3]
    assert [hit.read for hit in hits] == [[], ["id", "payload"], [], [], []]
    # Equal cosines are ordered by id, which has to be read then.
    assert [c.image_id for c in rank([Costly("z", 0.5), Costly("y", 0.5)], 1)] == ["y"]


def test_candidates_are_a_sequence() -> None:
    ranked = rank([Found("b", 0.5, {"n": 1}), Found("a", 0.25)], 5)
    first, second = ranked
    assert ranked == [first, second] == ranked[:]
    assert ranked != [second, first]
    assert (ranked[-1], ranked[1:]) == (second, [second])
    assert [*reversed(ranked)] == [second, first]
    with pytest.raises(IndexError):
        ranked[2]
    assert pickle.loads(pickle.dumps(ranked)) == [first, second]
    assert "image_id='b'" in repr(ranked)
