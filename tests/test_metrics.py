from __future__ import annotations

import numpy as np
import pytest

from edje_qdrant.errors import ConfigError
from edje_qdrant.metrics import ranks_of, recall_at


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
