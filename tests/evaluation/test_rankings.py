from __future__ import annotations

import numpy as np
import pytest
from eval_rankings import make_rankings
from hypothesis import given, settings
from hypothesis import strategies as st

from edje_qdrant.evaluation.rankings import FIGURES, figures, places
from edje_qdrant.metrics import first_ranks, recall_at


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 30), st.integers(0, 5))
def test_the_first_k_are_sorted_by_joint_score_and_the_rest_stays(k: int, seed: int) -> None:
    rankings = make_rankings(queries=4, seed=seed)
    for query, order in enumerate(rankings.order(k)):
        head = sorted(range(min(k, 25)), key=lambda place: (-rankings.joint[query, place], place))
        assert order.tolist() == [*head, *range(min(k, 25), 25)]


def test_equal_joint_scores_keep_the_first_stages_order() -> None:
    rankings = make_rankings(queries=3)
    rankings.joint[:] = 0
    assert (rankings.order(20) == np.arange(25)).all()


def test_reranking_none_is_the_first_stage() -> None:
    rankings = make_rankings()
    assert (rankings.right_after(0) == rankings.right).all()


def test_missing_candidates_never_come_forward() -> None:
    rankings = make_rankings(queries=2)
    rankings.joint[:, 20:] = -np.inf
    assert (rankings.order(25)[:, 20:] == np.arange(20, 25)).all()


def test_places_and_figures_say_the_same() -> None:
    rankings = make_rankings()
    right = rankings.right_after(10)
    found = places(right)
    table = figures(right, rankings.num_right)
    assert table.shape == (30, len(FIGURES))
    for column, k in enumerate((1, 5, 10, 20)):
        assert table[:, column].mean() == pytest.approx(recall_at(found, k))
    assert [rank for rank in found if rank is not None] == [
        rank for rank in first_ranks(right) if rank <= 25
    ]
    assert None in found
