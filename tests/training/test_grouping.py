from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edje_qdrant.errors import ConfigError
from edje_qdrant.training.grouping import Grouping, chain
from edje_qdrant.training.mixture import Mixture


def directions(count: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    """Return random embeddings of unit length, `(count, dim)` float32."""
    drawn = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def grouped(
    embeddings: np.ndarray, *, count: int = 4, seed: int = 0, weight: float = 1
) -> Grouping:
    order = Mixture([len(embeddings)], [weight], seed=seed)
    return Grouping(order, lambda rows: embeddings[rows[:, 1]], count=count, seed=seed)


@settings(deadline=None)
@given(
    length=st.integers(2, 60),
    weight=st.sampled_from([0.5, 1, 1.25]),
    size=st.integers(1, 9),
    count=st.integers(2, 7),
    seed=st.integers(0, 99),
)
def test_each_row_is_used_as_often_as_without_grouping(length, weight, size, count, seed):
    order = Mixture([length], [weight], seed=seed)
    batches = grouped(directions(length), count=count, seed=seed, weight=weight)
    for group in range(3):
        steps = range(group * count, (group + 1) * count)
        plain = Counter(row for s in steps for row in order.batch(s, size)[:, 1].tolist())
        assert plain == Counter(row for s in steps for row in batches.batch(s, size)[:, 1].tolist())


@settings(deadline=None)
@given(steps=st.lists(st.integers(0, 30), max_size=8), size=st.integers(1, 9))
def test_a_batch_follows_from_its_number_alone(steps, size):
    embeddings = directions(40)
    used = grouped(embeddings)
    for step in steps:  # in any order, as after a resume
        assert np.array_equal(used.batch(step, size), grouped(embeddings).batch(step, size))


def test_similar_images_share_a_batch():
    kinds = np.repeat(np.arange(8), 8)  # eight kinds of eight images
    embeddings = np.repeat(directions(8, seed=1), 8, axis=0) + 0.02 * directions(64)
    batches = grouped(embeddings, count=8)
    assert all(len(set(kinds[batches.batch(step, 8)[:, 1]])) <= 2 for step in range(8))
    starts = [int(grouped(embeddings, count=8, seed=s).batch(0, 8)[0, 1]) for s in range(9)]
    assert len(set(starts)) > 1


def test_wrong_images_are_harder_than_in_random_batches():
    embeddings = directions(512)
    plain, batches = Mixture([512], [1], seed=0), grouped(embeddings, count=16)

    def hardest(order) -> float:
        similar = []
        for step in range(16):
            rows = embeddings[order.batch(step, 32)[:, 1]]
            products = rows @ rows.T
            np.fill_diagonal(products, -1)
            similar.append(products.max(axis=1).mean())
        return float(np.mean(similar))

    assert hardest(batches) > hardest(plain) + 0.05


def test_a_chain_goes_to_the_most_similar_of_those_left():
    angles = np.deg2rad([0, 90, 10, 100, 20]).astype(np.float32)
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert chain(embeddings).tolist() == [0, 2, 4, 1, 3]
    assert chain(np.ones((3, 1), np.float32)).tolist() == [0, 1, 2]  # ties: the first one
    assert chain(embeddings[:1]).tolist() == [0]


def test_a_chain_does_not_depend_on_the_order_of_additions():
    """Sums of whole numbers are exact in float64, so every machine finds the same chain."""
    embeddings = directions(200, dim=768)
    shuffled = embeddings[:, np.random.default_rng(1).permutation(768)]
    assert np.array_equal(chain(embeddings), chain(shuffled))


def test_one_batch_cannot_be_grouped():
    with pytest.raises(ConfigError, match="2 or more batches"):
        grouped(directions(8), count=1)
    with pytest.raises(ConfigError, match="no batch"):
        grouped(directions(8)).batch(0, 0)


def test_more_pairs_than_can_be_grouped_in_time_are_refused():
    with pytest.raises(ConfigError, match=r"1,000 pairs, 9,000 together.* set it to 8 or less"):
        grouped(directions(8), count=9).batch(0, 1000)
