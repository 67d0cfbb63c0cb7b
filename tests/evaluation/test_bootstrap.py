from __future__ import annotations

import numpy as np
import pytest

from edje_qdrant.errors import ConfigError
from edje_qdrant.evaluation.bootstrap import difference, interval, resampled_means


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    values = np.random.default_rng(0).random((50, 2))
    clusters = np.arange(50)
    first = resampled_means(values, clusters, resamples=40, seed=3)
    assert (first == resampled_means(values, clusters, resamples=40, seed=3)).all()
    assert (first != resampled_means(values, clusters, resamples=40, seed=4)).any()
    # Columns may go in together or one by one: the draws are the same.
    alone = resampled_means(values[:, 1:], clusters, resamples=40, seed=3)
    np.testing.assert_allclose(alone[:, 0], first[:, 1])


def test_an_interval_is_as_wide_as_theory_says() -> None:
    values = (np.random.default_rng(1).random((400, 1)) < 0.3).astype(float)
    low, high = interval(resampled_means(values, np.arange(400), resamples=2000)[:, 0])
    error = np.sqrt(values.mean() * (1 - values.mean()) / 400)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_captions_of_one_picture_are_drawn_together() -> None:
    answers = (np.random.default_rng(2).random(80) < 0.5).astype(float)
    values = np.repeat(answers, 5)[:, None]  # five captions that agree tell no more than one
    together = resampled_means(values, np.repeat(np.arange(80), 5), resamples=1000)
    apart = resampled_means(values, np.arange(400), resamples=1000)
    assert together.std() == pytest.approx(np.sqrt(5) * apart.std(), rel=0.15)


def test_clusters_of_unequal_size_give_the_mean_over_queries() -> None:
    values = np.array([[1.0], [1.0], [1.0], [0.0]])
    means = resampled_means(values, np.array([7, 7, 7, 9]), resamples=500)[:, 0]
    assert set(np.round(means, 6)) == {0.0, 0.75, 1.0}


def test_a_steady_difference_is_seen_through_noise_that_both_share() -> None:
    rng = np.random.default_rng(3)
    one = (rng.random(300) < 0.5).astype(float)
    other = one.copy()
    other[np.flatnonzero(one == 0)[:12]] = 1  # never worse, better for 12 of 300
    means = resampled_means(np.stack([one, other], axis=1), np.arange(300))
    found = difference(float(other.mean() - one.mean()), means[:, 1], means[:, 0])
    assert found.mean == pytest.approx(0.04)
    assert 0 < found.low < 0.04 < found.high
    assert found.share_above_0 == 1.0
    # Unpaired, the two intervals overlap.
    assert interval(means[:, 0])[1] > interval(means[:, 1])[0]


def test_no_difference_is_above_nothing() -> None:
    means = resampled_means(np.ones((5, 1)), np.arange(5), resamples=10)[:, 0]
    found = difference(0.0, means, means)
    assert found.as_dict() == {"mean": 0, "low": 0, "high": 0, "share_above_0": 0}


@pytest.mark.parametrize(("queries", "resamples"), [(0, 10), (3, 0)])
def test_nothing_to_draw_is_refused(queries: int, resamples: int) -> None:
    with pytest.raises(ConfigError, match="1 or more of each"):
        resampled_means(np.ones((queries, 1)), np.arange(queries), resamples=resamples)
