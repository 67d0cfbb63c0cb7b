"""Metrics of each model and number of candidates, with intervals and paired differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import ConfigError
from edje_qdrant.evaluation.bootstrap import Difference, difference, interval, resampled_means
from edje_qdrant.evaluation.rankings import FIGURES, Direction, Rankings, figures
from edje_qdrant.metrics import first_ranks

__all__ = ["Comparison", "Measured", "System", "compare_systems", "steps"]


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Hold the measurements of one model in one direction.

    Attributes:
        model: The model's label.
        tokens_per_image: Tokens stored for each image.
        bytes_per_image: Stored size of these tokens, without the vector.
        rankings: Rankings at the largest number of candidates.
        milliseconds: Number of candidates -> median time of one search; empty if not timed.
        precision: Precision of the joint encoder.
    """

    model: str
    tokens_per_image: int
    bytes_per_image: int
    rankings: Rankings
    milliseconds: Mapping[int, float]
    precision: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Hold the paired differences of one system's reranked metrics to those of another.

    Attributes:
        model: The other system's model.
        num_candidates: The other system's number of candidates.
        difference: Metric -> this system's value minus the other's.
    """

    model: str
    num_candidates: int
    difference: Mapping[str, Difference]


@dataclass(frozen=True, slots=True)
class System:
    """Hold the metrics of one model, one direction and one number of candidates.

    Attributes:
        model: The model's label.
        direction: `t2i` or `i2t`.
        num_candidates: Candidates reranked for each query; at most the size of the pool.
        queries: Number of queries.
        pool: Number of answers searched.
        tokens_per_image: Tokens stored for each image.
        bytes_per_image: Stored size of these tokens, without the vector.
        ms_per_query: Median time of one search; None if not timed.
        first_stage: Metric -> mean over the queries, in [0, 1].
        reranked: The same after reranking.
        intervals: `first_stage` and `reranked` -> metric -> ends of the interval.
        difference: Metric -> reranked minus first stage, paired.
        moved: Numbers of queries whose first right answer moved `up`, moved `down` or kept its
            rank (`same`).
        against: Comparisons with the first model at this number of candidates, and with this
            model at its smallest number.
        precision: Precision of the joint encoder.
    """

    model: str
    direction: Direction
    num_candidates: int
    queries: int
    pool: int
    tokens_per_image: int
    bytes_per_image: int
    ms_per_query: float | None
    first_stage: Mapping[str, float]
    reranked: Mapping[str, float]
    intervals: Mapping[str, Mapping[str, tuple[float, float]]]
    difference: Mapping[str, Difference]
    moved: Mapping[str, int]
    against: tuple[Comparison, ...]
    precision: str

    def as_dict(self) -> dict[str, Any]:
        """Return the system as a JSON object."""
        return {
            "model": self.model,
            "direction": self.direction,
            "num_candidates": self.num_candidates,
            "queries": self.queries,
            "pool": self.pool,
            "tokens_per_picture": self.tokens_per_image,
            "bytes_per_picture": self.bytes_per_image,
            "precision": self.precision,
            "ms_per_query": None if self.ms_per_query is None else round(self.ms_per_query, 2),
            "first_stage": _rounded(self.first_stage),
            "reranked": _rounded(self.reranked),
            "intervals": {
                stage: {name: [round(end, 5) for end in ends] for name, ends in found.items()}
                for stage, found in self.intervals.items()
            },
            "difference": {name: d.as_dict() for name, d in self.difference.items()},
            "moved": dict(self.moved),
            "against": [
                {
                    "model": other.model,
                    "num_candidates": other.num_candidates,
                    **{name: d.as_dict() for name, d in other.difference.items()},
                }
                for other in self.against
            ],
        }


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """Hold the metrics of one stage: `mean` `(metrics,)`, `drawn` `(resamples, metrics)`."""

    mean: NDArray[np.float64]
    drawn: NDArray[np.float64]

    def named(self) -> dict[str, float]:
        return dict(zip(FIGURES, self.mean.tolist(), strict=True))

    def intervals(self) -> dict[str, tuple[float, float]]:
        return {name: interval(self.drawn[:, n]) for n, name in enumerate(FIGURES)}

    def minus(self, other: _Sample) -> dict[str, Difference]:
        return {
            name: difference(
                float(self.mean[n] - other.mean[n]), self.drawn[:, n], other.drawn[:, n]
            )
            for n, name in enumerate(FIGURES)
        }


def steps(num_candidates: Sequence[int], pool: int) -> list[int]:
    """Return the distinct numbers of candidates, ascending, each at most the pool's size."""
    return sorted({min(number, pool) for number in num_candidates})


def compare_systems(
    measured: Sequence[Measured],
    num_candidates: Sequence[int],
    *,
    resamples: int,
    seed: int,
) -> list[System]:
    """Compute the metrics of one direction for every model and number of candidates.

    Args:
        measured: The measurements of each model, all with the same queries.
        num_candidates: Numbers of candidates.
        resamples: Number of resamples of the bootstrap.
        seed: Random seed of the bootstrap.

    Raises:
        ConfigError: The models were measured with different queries.
    """
    for other in measured[1:]:
        if [*other.rankings.queries] != [*measured[0].rankings.queries]:
            raise ConfigError(
                f"{other.model} and {measured[0].model} were measured with different "
                "queries; only results for the same queries can be compared"
            )
    reranked: dict[tuple[str, int], _Sample] = {}
    systems = []
    for one in measured:
        ranks = first_ranks(one.rankings.right)
        numbers = steps(num_candidates, one.rankings.depth)
        samples = _samples(one.rankings, [0, *numbers], resamples, seed)
        first = next(samples)
        for number, sample in zip(numbers, samples, strict=True):
            reranked[one.model, number] = sample
            after = first_ranks(one.rankings.right_after(number))
            others = [(measured[0].model, number), (one.model, numbers[0])]
            systems.append(
                System(
                    model=one.model,
                    direction=one.rankings.direction,
                    num_candidates=number,
                    queries=len(one.rankings),
                    pool=one.rankings.pool,
                    tokens_per_image=one.tokens_per_image,
                    bytes_per_image=one.bytes_per_image,
                    ms_per_query=one.milliseconds.get(number),
                    first_stage=first.named(),
                    reranked=sample.named(),
                    intervals={"first_stage": first.intervals(), "reranked": sample.intervals()},
                    difference=sample.minus(first),
                    moved={
                        "up": int((after < ranks).sum()),
                        "down": int((after > ranks).sum()),
                        "same": int((after == ranks).sum()),
                    },
                    against=tuple(
                        Comparison(*other, sample.minus(reranked[other]))
                        for other in others
                        if other != (one.model, number) and other in reranked
                    ),
                    precision=one.precision,
                )
            )
    return systems


def _samples(
    rankings: Rankings, numbers: Sequence[int], resamples: int, seed: int
) -> Iterator[_Sample]:
    """Yield the metrics at each number of candidates, all with the same resamples."""
    for number in numbers:
        values = figures(rankings.right_after(number), rankings.num_right)
        drawn = resampled_means(values, rankings.clusters, resamples=resamples, seed=seed)
        yield _Sample(values.mean(axis=0), drawn)


def _rounded(found: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in found.items()}
