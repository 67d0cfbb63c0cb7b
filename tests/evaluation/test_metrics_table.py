from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from eval_rankings import make_rankings

from edje_qdrant.errors import ConfigError
from edje_qdrant.evaluation.metrics_table import Measured, compare_systems, steps
from edje_qdrant.evaluation.rankings import FIGURES, figures, places
from edje_qdrant.metrics import recall_at


def measured(name: str, good: float) -> Measured:
    return Measured(name, 4, 128, make_rankings(good=good), {5: 1.5, 20: 3.0}, "float32")


def test_a_sweep_is_sorted_without_doubles_and_ends_at_the_pool() -> None:
    assert steps([50, 5, 10, 5, 100], 40) == [5, 10, 40]


def test_figures_are_those_of_the_rankings() -> None:
    one = measured("a", 2.0)
    small, large = compare_systems([one], [20, 5], resamples=50, seed=0)
    assert (small.num_candidates, large.num_candidates) == (5, 20)
    for system in (small, large):
        after = places(one.rankings.right_after(system.num_candidates))
        before = places(one.rankings.right)
        for k in (1, 5, 10, 20):
            assert system.first_stage[f"R@{k}"] == pytest.approx(recall_at(before, k))
            assert system.reranked[f"R@{k}"] == pytest.approx(recall_at(after, k))
        for stage, means in (("first_stage", system.first_stage), ("reranked", system.reranked)):
            assert tuple(means) == FIGURES
            for name, (low, high) in system.intervals[stage].items():
                assert 0 <= low <= means[name] <= high <= 1
        for name, gap in system.difference.items():
            assert gap.mean == pytest.approx(system.reranked[name] - system.first_stage[name])
        assert sum(system.moved.values()) == system.queries == 30
    assert (small.ms_per_query, large.ms_per_query) == (1.5, 3.0)
    assert large.difference["R@1"].share_above_0 == 1.0


def test_models_are_compared_with_the_first_and_numbers_with_the_smallest() -> None:
    one, other = measured("a", 4.0), measured("b", 0.0)
    systems = compare_systems([one, other], [5, 20], resamples=50, seed=0)
    against = [[(c.model, c.num_candidates) for c in system.against] for system in systems]
    assert against == [[], [("a", 5)], [("a", 5)], [("a", 20), ("b", 5)]]
    gap = systems[3].against[0].difference["R@1"]
    assert gap.mean == pytest.approx(systems[3].reranked["R@1"] - systems[1].reranked["R@1"])
    assert gap.high < 0


def test_a_model_is_no_better_than_itself() -> None:
    one = measured("a", 2.0)
    systems = compare_systems([one, replace(one, model="b")], [10], resamples=50, seed=0)
    gap = systems[1].against[0].difference["MRR@20"]
    assert (gap.mean, gap.low, gap.high) == (0, 0, 0)


def test_other_queries_cannot_be_compared() -> None:
    one = measured("a", 1.0)
    fewer = replace(one, model="b", rankings=make_rankings(queries=20))
    with pytest.raises(ConfigError, match="different queries"):
        compare_systems([one, fewer], [5], resamples=5, seed=0)


def test_a_system_is_a_json_object() -> None:
    systems = compare_systems([measured("a", 1.0)], [5, 20], resamples=20, seed=0)
    data = json.loads(json.dumps([system.as_dict() for system in systems]))
    assert data[1]["reranked"].keys() == set(FIGURES)
    assert data[1]["against"][0]["num_candidates"] == 5
    assert len(data[1]["intervals"]["reranked"]["R@1"]) == 2
    assert data[0]["bytes_per_picture"] == 128


def test_several_right_answers_are_one_success() -> None:
    right = np.array([[True, True, False]])
    table = figures(right, np.array([5]))
    assert table[0, :4].tolist() == [1, 1, 1, 1]
    assert 0 < table[0, FIGURES.index("nDCG@10")] < 1
