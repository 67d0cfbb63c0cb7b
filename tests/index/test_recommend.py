"""Points like some stored ones, and unlike others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from index_engines import Engine, image_id, make_points, unit_vectors
from qdrant_client import models
from rounding import DOT, float32_slack

from edje_qdrant.errors import ConfigError, StoreError
from edje_qdrant.index import VectorIndex
from edje_qdrant.types import Point

COUNT = 200
VECTORS = unit_vectors(COUNT, 16)


def filled(engine: Engine) -> VectorIndex:
    index = engine.create(dim=16)
    index.upsert(
        [
            Point(p.id, p.vector, {**p.payload, "even": n % 2 == 0})
            for n, p in enumerate(make_points(VECTORS))
        ]
    )
    return index


def ids(*numbers: int) -> list[str]:
    return [image_id(n) for n in numbers]


def unit(vector: Any) -> Any:
    return vector / np.linalg.norm(vector)


def best(scores: Any, without: list[int], limit: int) -> list[str]:
    order = [int(n) for n in np.argsort(-scores) if n not in without]
    return ids(*order[:limit])


@pytest.mark.parametrize(
    ("positive", "negative"), [([3], []), ([3, 14, 15], []), ([3, 14], [92]), ([3], [92, 65, 35])]
)
def test_near_the_average(engine: Engine, positive: list[int], negative: list[int]) -> None:
    index = filled(engine)
    middle = VECTORS[positive].mean(axis=0)
    if negative:
        middle = 2 * middle - VECTORS[negative].mean(axis=0)
    cosines = VECTORS @ unit(middle)
    found = index.recommend(ids(*positive), ids(*negative), 12)
    assert [c.image_id for c in found] == best(cosines, positive + negative, 12)
    assert [c.rank for c in found] == [*range(1, 13)]
    scores = {image_id(n): cosine for n, cosine in enumerate(cosines)}
    np.testing.assert_allclose(
        [c.score for c in found],
        [scores[c.image_id] for c in found],
        atol=float32_slack(1, roundings=DOT),
    )
    assert found[0].payload["path"].endswith(".png")
    assert "tokens" not in found[0].payload["_edje"]


@pytest.mark.parametrize(
    ("positive", "negative"), [([3, 14], []), ([3, 14], [92, 65]), ([], [92, 65])]
)
def test_by_the_best_score(engine: Engine, positive: list[int], negative: list[int]) -> None:
    index = filled(engine)
    far = np.full((1, COUNT), -np.inf)
    to_positive = np.concatenate([far, VECTORS[positive] @ VECTORS.T]).max(axis=0)
    to_negative = np.concatenate([far, VECTORS[negative] @ VECTORS.T]).max(axis=0)
    # First what is nearer to a positive one, by how near; then the rest, the farthest first.
    keys = np.where(to_positive > to_negative, 10 + to_positive, -to_negative)
    found = index.recommend(ids(*positive), ids(*negative), 150, strategy="best_score")
    assert [c.image_id for c in found] == best(keys, positive + negative, 150)
    scores = [c.score for c in found]
    assert scores == sorted(scores, reverse=True)


def test_among_what_a_filter_lets_through(engine: Engine) -> None:
    index = filled(engine)
    odd = [n for n in range(COUNT) if n % 2]
    cosines = VECTORS @ VECTORS[4]
    for chosen in (
        {"even": True},
        models.Filter(
            must=[models.FieldCondition(key="even", match=models.MatchValue(value=True))]
        ),
    ):
        found = index.recommend(ids(4), [], 10, filter=chosen)
        assert [c.image_id for c in found] == best(cosines, [4, *odd], 10)
    assert len(index.recommend(ids(4, 6), ids(8), 1000, filter={"even": True})) == COUNT // 2 - 3


def test_examples_given_twice_count_once(engine: Engine) -> None:
    index = filled(engine)
    assert index.recommend(ids(3, 3, 14), ids(92, 92), 5) == index.recommend(ids(3, 14), ids(92), 5)


@pytest.mark.parametrize("strategy", ["average_vector", "best_score"])
def test_unknown_examples_are_named(engine: Engine, strategy: Any) -> None:
    index = filled(engine)
    with pytest.raises(ConfigError, match=f"holds no {image_id(900)}, {image_id(901)};"):
        index.recommend(ids(3, 900), ids(901), 5, strategy=strategy)
    with pytest.raises(ConfigError, match=f"{image_id(904)} and 3 more"):
        index.recommend(ids(3, *range(900, 908)), [], 5, strategy=strategy)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (([], [], 5), "no positive example; give one"),
        (([], ids(1), 5), "no positive example.*or use best_score"),
        ((ids(1, 2), ids(2), 5), f"{image_id(2)} cannot be both"),
        ((["seven"], [], 5), "'seven' is not a UUID"),
        ((image_id(1), [], 5), "positive_ids is the text"),
        ((ids(1), image_id(2), 5), "negative_ids is the text"),
        ((ids(1), [], 0), "limit is 0"),
    ],
)
def test_what_cannot_be_recommended_from(engine: Engine, given: Any, words: str) -> None:
    index = filled(engine)
    with pytest.raises(ConfigError, match=words):
        index.recommend(*given)


def test_more_that_is_refused(engine: Engine) -> None:
    index = filled(engine)
    with pytest.raises(ConfigError, match="strategy is 'best'; give one of average_vector"):
        index.recommend(ids(1), [], 5, strategy="best")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"no positive example; .*best_score needs it$"):
        index.recommend([], [], 5, strategy="best_score")
    with pytest.raises(ConfigError, match="'_edje' is reserved"):
        index.recommend(ids(1), [], 5, filter={"_edje": 1})
    index.close()
    with pytest.raises(StoreError, match="closed"):
        index.recommend(ids(1), [], 5)


def test_examples_that_cancel_each_other_out(engine: Engine) -> None:
    index = engine.create(dim=16)
    index.upsert(make_points(np.concatenate([VECTORS[:1], -VECTORS[:1], VECTORS[1:9]])))
    with pytest.raises(ConfigError, match="cancel each other out"):
        index.recommend(ids(0, 1), [], 5)
    assert len(index.recommend(ids(0, 1), [], 5, strategy="best_score")) == 5
