"""Positive and negative examples for `VectorIndex.recommend`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import ConfigError, ImagesNotFoundError
from edje_qdrant.index.validate import check_ids

__all__ = ["Examples", "Strategy", "average", "check_examples", "example_vectors"]

#: How examples are combined. `average_vector` searches near the positives' average, pushed
#: away from the negatives'; the score is the cosine with that. `best_score` compares each point
#: with every example: its score is high if the nearest is positive, negative if it is not.
Strategy: TypeAlias = Literal["average_vector", "best_score"]

_STRATEGIES: tuple[str, ...] = get_args(Strategy)
_NAMED = 5

# An average of unit vectors shorter than this is rounding error without a direction.
_SHORTEST = 1e-5


@dataclass(frozen=True, slots=True)
class Examples:
    """Ids of examples, each once and in one list only."""

    positive: list[str]
    negative: list[str]


def check_examples(
    positive_ids: Sequence[str], negative_ids: Sequence[str], strategy: str
) -> Examples:
    """Return the examples' ids.

    Raises:
        ConfigError: The strategy is unknown or lacks an example, an example is both positive and
            negative, or an id is not valid.
    """
    if strategy not in _STRATEGIES:
        raise ConfigError(f"strategy is {strategy!r}; give one of {', '.join(_STRATEGIES)}")
    for name, given in (("positive_ids", positive_ids), ("negative_ids", negative_ids)):
        if isinstance(given, str):
            raise ConfigError(f"{name} is the text {given!r}; give a list of ids, [{given!r}]")
    positive, negative = check_ids(positive_ids), check_ids(negative_ids)
    both = sorted({*positive} & {*negative})
    if both:
        raise ConfigError(f"{_listed(both)} cannot be both a positive and a negative example")
    if not positive and (strategy == "average_vector" or not negative):
        raise ConfigError(
            f"there is no positive example; give one at least, as {strategy} needs it"
            + (", or use best_score, which takes negative ones alone" if negative else "")
        )
    return Examples(positive, negative)


def example_vectors(
    stored: Mapping[str, NDArray[np.float32]], examples: Examples
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the examples' `(p, d)` and `(n, d)` vectors.

    Raises:
        ImagesNotFoundError: One is not stored; names it.
    """
    unknown = [i for i in [*examples.positive, *examples.negative] if i not in stored]
    if unknown:
        raise ImagesNotFoundError(
            f"the collection holds no {_listed(unknown)}; give examples that are in it", unknown
        )
    positive, negative = (
        np.array([stored[i] for i in ids], np.float32)
        for ids in (examples.positive, examples.negative)
    )
    return positive, negative


def average(positive: NDArray[np.float32], negative: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the `(d,)` vector that `average_vector` searches near.

    Raises:
        ConfigError: The examples cancel each other out.
    """
    middle: NDArray[np.float32] = positive.mean(axis=0)
    if len(negative):
        middle = 2 * middle - negative.mean(axis=0)
    if np.linalg.norm(middle) < _SHORTEST:
        raise ConfigError(
            "the examples cancel each other out, so that their average has no direction; leave "
            "one out, or use the strategy best_score"
        )
    return middle


def _listed(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return f"{', '.join(ids[:_NAMED])}{more}"
