from __future__ import annotations

from edje_qdrant.index.ranking import rank


def test_equal_cosines_go_by_id() -> None:
    found = [("b", 0.5, {"n": 1}), ("c", 0.9, {}), ("a", 0.5 - 6e-8, {"n": 2}), ("d", 0.5, {})]
    ranked = rank(found, 3)
    assert [(c.image_id, c.rank, c.score) for c in ranked] == [
        ("c", 1, 0.9),
        ("a", 2, 0.5),
        ("b", 3, 0.5),
    ]
    assert ranked[1].payload == {"n": 2}


def test_a_slope_of_near_ties_is_no_tie() -> None:
    found = [(f"{9 - n}", 0.5 - n * 0.6e-6, {}) for n in range(9)]
    ranked = rank(found, 9)
    # Only neighbours are within a millionth of each other: pairs change places, no more.
    assert "".join(c.image_id for c in ranked) == "896745231"
    assert [c.score for c in ranked] == sorted((c.score for c in ranked), reverse=True)
    assert ranked[0].score - ranked[-1].score > 3e-6


def test_nothing_found() -> None:
    assert rank([], 5) == []
