from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edje_qdrant.errors import ConfigError
from edje_qdrant.metrics import (
    NOT_FOUND,
    first_ranks,
    hits_at,
    kendall_tau,
    ndcg_at,
    ranks_of,
    recall_at,
    reciprocal_ranks,
)

RIGHT = np.array([[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)


def test_ranks_count_from_one_and_ties_count_against_the_right_answer():
    scores = np.array([[0.9, 0.1, 0.5], [0.5, 0.5, 0.1], [0.1, 0.2, 0.3]])
    assert ranks_of(scores, [0, 0, 0]).tolist() == [1, 2, 3]


def test_an_answer_that_was_not_retrieved_stands_last():
    scores = np.array([[1.0, -np.inf, -np.inf, 0.5]])
    assert ranks_of(scores, [1]).tolist() == [4]


def test_recall_counts_the_queries_answered_within_k():
    ranks = [1, 3, None, 10]
    assert recall_at(ranks, 1) == 0.25
    assert recall_at(ranks, 5) == 0.5
    assert recall_at(ranks, 10) == 0.75


@pytest.mark.parametrize(("ranks", "k"), [([1], 0), ([], 5)])
def test_recall_of_nothing_is_refused(ranks, k):
    with pytest.raises(ConfigError, match="at least one query"):
        recall_at(ranks, k)


def test_the_first_right_answer_gives_the_rank():
    assert first_ranks(RIGHT).tolist() == [2, 1, NOT_FOUND]
    assert first_ranks(np.zeros((2, 0), bool)).tolist() == [NOT_FOUND, NOT_FOUND]


def test_any_of_several_right_answers_is_a_hit():
    assert hits_at(RIGHT, 1).tolist() == [0, 1, 0]
    assert hits_at(RIGHT, 4).tolist() == [1, 1, 0]  # recall proper would say 1, 1, 0 of 2, 1, 1
    assert hits_at(RIGHT, 99).tolist() == [1, 1, 0]


def test_reciprocal_ranks_are_cut_at_k():
    assert reciprocal_ranks(RIGHT, 4).tolist() == [0.5, 1, 0]
    assert reciprocal_ranks(RIGHT, 1).tolist() == [0, 1, 0]


def test_ndcg_against_numbers_worked_out_by_hand():
    places = 1 / np.log2([2, 3, 4, 5])
    expected = [(places[1] + places[3]) / (places[0] + places[1] + places[2]), 1.0, 0.0]
    np.testing.assert_allclose(ndcg_at(RIGHT, [3, 1, 2], 10), expected)
    # With k = 2 the ideal holds two answers, however many there are.
    np.testing.assert_allclose(
        ndcg_at(RIGHT, [5, 1, 2], 2), [places[1] / (places[0] + places[1]), 1, 0]
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: hits_at(RIGHT, 0), "k is 0"),
        (lambda: reciprocal_ranks(RIGHT, -1), "k is -1"),
        (lambda: ndcg_at(RIGHT, [3, 1, 2], 0), "k is 0"),
        (lambda: ndcg_at(RIGHT, [3, 1, 0], 2), "number of right answers"),
        (lambda: ndcg_at(RIGHT, [1, 1, 1], 2), "number of right answers"),
        (lambda: hits_at(RIGHT[0], 1), "shape"),
    ],
)
def test_what_has_no_figure_is_refused(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


@st.composite
def tables(draw):
    queries, places = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    right = np.array(
        draw(st.lists(st.lists(st.booleans(), min_size=places, max_size=places),
                      min_size=queries, max_size=queries))
    )  # fmt: skip
    missed = np.array(draw(st.lists(st.integers(1, 3), min_size=queries, max_size=queries)))
    return right, right.sum(axis=1) + missed * draw(st.booleans()) + (~right.any(axis=1))


@settings(deadline=None, max_examples=50)
@given(tables(), st.integers(1, 15))
def test_figures_lie_between_0_and_1_and_agree_with_the_plain_way(case, k):
    right, num_right = case
    for n, row in enumerate(right):
        found = [place for place, hit in enumerate(row, start=1) if hit]
        inside = [place for place in found if place <= k]
        gains = sum(1 / np.log2(place + 1) for place in inside)
        ideal = sum(1 / np.log2(place + 1) for place in range(1, min(k, num_right[n]) + 1))
        assert hits_at(right, k)[n] == bool(inside)
        assert reciprocal_ranks(right, k)[n] == (1 / inside[0] if inside else 0)
        assert ndcg_at(right, num_right, k)[n] == pytest.approx(gains / ideal)
        assert 0 <= ndcg_at(right, num_right, k)[n] <= 1 + 1e-12
        assert first_ranks(right)[n] == (found[0] if found else NOT_FOUND)


@settings(deadline=None, max_examples=50)
@given(tables(), st.integers(1, 14))
def test_a_longer_look_never_finds_less(case, k):
    right, _ = case
    assert (hits_at(right, k + 1) >= hits_at(right, k)).all()
    assert (reciprocal_ranks(right, k + 1) >= reciprocal_ranks(right, k)).all()
    np.testing.assert_allclose(
        hits_at(right, k).mean(), recall_at(first_ranks(right), k), atol=1e-12
    )


def test_kendall_tau_against_numbers_worked_out_by_hand():
    scores = [[3.0, 2.0, 1.0, 0.0]] * 4
    others = [[9.0, 5.0, 4.0, -1.0], [0.0, 1.0, 2.0, 3.0], [2.0, 3.0, 1.0, 0.0], [1.0, 1.0, 0, -1]]
    np.testing.assert_allclose(kendall_tau(scores, others), [1, -1, 4 / 6, 5 / 6])


@pytest.mark.parametrize("others", [[[1.0, 2.0]], [[1.0], [2.0]], [1.0, 2.0]])
def test_kendall_tau_of_what_cannot_be_compared_is_refused(others):
    with pytest.raises(ConfigError, match="two answers"):
        kendall_tau([[1.0], [2.0]], others)
