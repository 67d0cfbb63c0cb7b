from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edje_qdrant.errors import ConfigError
from edje_qdrant.training.mixture import Mixture

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=4)


def stream(mixture: Mixture, count: int, size: int) -> list[tuple[int, int]]:
    """Return the first `count` pairs that batches of `size` hold."""
    steps = range(-(-count // size))
    return [tuple(pair) for s in steps for pair in mixture.batch(s, size).tolist()][:count]


@settings(deadline=None)
@given(data=st.data(), lengths=LENGTHS, size=st.integers(1, 50), seed=st.integers(0, 2**40))
def test_each_epoch_passes_through_each_source_as_often_as_its_weight_says(
    data, lengths, size, seed
):
    weights = [data.draw(st.sampled_from([0.5, 1, 1.25, 2, 3])) for _ in lengths]
    if sum(int(w) * n + round(w % 1 * n) for w, n in zip(weights, lengths, strict=True)) == 0:
        return
    mixture = Mixture(lengths, weights, seed=seed)
    rows = mixture.rows_per_epoch
    pairs = stream(mixture, 3 * rows, size)
    for epoch in range(3):
        counts = Counter(pairs[epoch * rows : (epoch + 1) * rows])
        for source, (length, weight) in enumerate(zip(lengths, weights, strict=True)):
            seen = [counts[source, row] for row in range(length)]
            assert set(seen) <= {int(weight), int(weight) + 1}
            assert sum(seen) == int(weight) * length + round(weight % 1 * length)


@settings(deadline=None)
@given(
    lengths=LENGTHS,
    size=st.integers(1, 30),
    seed=st.integers(0, 9),
    steps=st.lists(st.integers(0, 60), max_size=8),
)
def test_a_batch_follows_from_its_number_alone(lengths, size, seed, steps):
    used, weights = Mixture(lengths, [1.5] * len(lengths), seed=seed), [1.5] * len(lengths)
    for step in steps:  # in any order, as after a resume
        fresh = Mixture(lengths, weights, seed=seed)
        assert np.array_equal(used.batch(step, size), fresh.batch(step, size))


@settings(deadline=None)
@given(
    lengths=LENGTHS,
    weight=st.sampled_from([0.5, 0.9, 1]),
    size=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_no_row_comes_twice_in_a_batch_while_an_epoch_holds_two(lengths, weight, size, seed):
    if max(round(weight * n) for n in lengths) == 0:
        return
    mixture = Mixture(lengths, [weight] * len(lengths), seed=seed)
    size = min(size, max(1, mixture.rows_per_epoch // 2))
    for step in range(4 * mixture.rows_per_epoch // size + 1):
        batch = mixture.batch(step, size)
        assert len(np.unique(batch, axis=0)) == size


def test_epochs_differ_and_so_do_seeds():
    mixture = Mixture([100], [1], seed=0)
    first, second = mixture.batch(0, 100), mixture.batch(1, 100)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, Mixture([100], [1], seed=1).batch(0, 100))


def test_half_a_source_is_another_half_each_epoch():
    mixture = Mixture([1000], [0.5], seed=0)
    halves = [set(mixture.batch(step, 500)[:, 1].tolist()) for step in range(2)]
    assert [len(half) for half in halves] == [500, 500]
    assert 150 < len(halves[0] & halves[1]) < 350


def test_sources_are_spread_evenly_through_an_epoch():
    source = Mixture([5000, 5000], [1, 1], seed=0).batch(0, 5000)[:, 0]
    assert 0.45 < source.mean() < 0.55


def test_only_usable_rows_are_drawn():
    usable = [np.array([3, 5, 900]), np.array([], np.int64), np.array([7])]
    mixture = Mixture([1000, 5, 10], [1, 1, 2], seed=0, usable=usable)
    assert mixture.rows_per_epoch == 5
    counts = Counter(map(tuple, mixture.batch(0, 5).tolist()))
    assert counts == {(0, 3): 1, (0, 5): 1, (0, 900): 1, (2, 7): 2}


def test_a_batch_is_int64_and_an_epoch_is_counted():
    mixture = Mixture([10], [1], seed=0)
    batch = mixture.batch(0, 4)
    assert (batch.shape, batch.dtype) == ((4, 2), np.int64)
    assert mixture.epoch_of(5, 4) == 2.0


@pytest.mark.parametrize(
    ("lengths", "weights", "message"),
    [
        ([3], [1, 1], "as many weights"),
        ([3], [0], "greater than 0"),
        ([3], [float("nan")], "greater than 0"),
        ([3, 3], [1, -1], "greater than 0"),
        ([0], [1], "has no images"),
        ([3], [0.1], "has no images"),
        ([], [], "has no images"),
    ],
)
def test_what_cannot_be_mixed_is_refused(lengths, weights, message):
    with pytest.raises(ConfigError, match=message):
        Mixture(lengths, weights, seed=0)


@pytest.mark.parametrize(("step", "size"), [(-1, 4), (0, 0)])
def test_batches_that_are_none_are_refused(step, size):
    with pytest.raises(ConfigError, match="no batch"):
        Mixture([10], [1], seed=0).batch(step, size)
