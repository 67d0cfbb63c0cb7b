from __future__ import annotations

import numpy as np
import pytest
from rounding import DOT, float32_slack

from edje_qdrant.evaluation import nearest as module
from edje_qdrant.evaluation.nearest import nearest


def unit(count: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("depth", [1, 7, 60])
def test_it_is_a_full_sort(monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    monkeypatch.setattr(module, "_CELLS", 200)  # several steps
    queries, answers = unit(9, 16, 0), unit(60, 16, 1)
    rows, cosines = nearest(queries, answers, depth)
    truth = queries @ answers.T
    expected = np.argsort(-truth, axis=1)[:, :depth]
    assert (rows == expected).all()
    np.testing.assert_allclose(
        cosines,
        np.take_along_axis(truth, expected, axis=1),
        atol=float32_slack(1, roundings=DOT),
    )


def test_equal_answers_are_in_order_of_row_or_name() -> None:
    answers = np.repeat(unit(2, 8, 2), 5, axis=0)
    rows, _ = nearest(answers[:1], answers, 7)
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    names = [f"{9 - n}" for n in range(10)]
    rows, _ = nearest(answers[:1], answers, 7, names=names)
    assert rows.tolist() == [[4, 3, 2, 1, 0, 9, 8]]


def test_a_small_pool_gives_what_it_has() -> None:
    rows, cosines = nearest(unit(3, 8, 0), unit(2, 8, 1), 10)
    assert rows.shape == cosines.shape == (3, 2)
