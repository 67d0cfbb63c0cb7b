"""From rankings to figures: each number of candidates, with intervals and paired differences."""

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
    """Hold what was measured of one model in one direction.

    Attributes:
        model: The label it is shown by.
        tokens_per_picture: Tokens stored for each image.
        bytes_per_picture: What they take as stored, without the vector.
        rankings: At the largest number of candidates.
        milliseconds: Number of candidates -> median of one search; empty where none was timed.
    """

    model: str
    tokens_per_picture: int
    bytes_per_picture: int
    rankings: Rankings
    milliseconds: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Hold the paired differences of one system's reranked figures to another's.

    Attributes:
        model: The other's.
        num_candidates: The other's.
        difference: Figure -> how much more the first finds.
    """

    model: str
    num_candidates: int
    difference: Mapping[str, Difference]


@dataclass(frozen=True, slots=True)
class System:
    """Hold the figures of one model, one direction and one number of candidates.

    Attributes:
        model: Its label.
        direction: `t2i` or `i2t`.
        num_candidates: Reranked for each query; no more than the pool holds.
        queries: Asked.
        pool: Answers searched in.
        tokens_per_picture: Tokens stored for each image.
        bytes_per_picture: What they take as stored, without the vector.
        ms_per_query: Median of one search, where it was timed.
        first_stage: Figure -> mean over the queries, in [0, 1].
        reranked: The same after reranking.
        intervals: `first_stage` and `reranked` -> figure -> the interval's ends.
        difference: Figure -> reranked less first stage, paired.
        moved: Queries whose first right answer went `up`, went `down` or stayed (`same`).
        against: The first model at this number of candidates, and this model at its smallest.
    """

    model: str
    direction: Direction
    num_candidates: int
    queries: int
    pool: int
    tokens_per_picture: int
    bytes_per_picture: int
    ms_per_query: float | None
    first_stage: Mapping[str, float]
    reranked: Mapping[str, float]
    intervals: Mapping[str, Mapping[str, tuple[float, float]]]
    difference: Mapping[str, Difference]
    moved: Mapping[str, int]
    against: tuple[Comparison, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the system as a JSON object."""
        return {
            "model": self.model,
            "direction": self.direction,
            "num_candidates": self.num_candidates,
            "queries": self.queries,
            "pool": self.pool,
            "tokens_per_picture": self.tokens_per_picture,
            "bytes_per_picture": self.bytes_per_picture,
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
    """Hold a stage's figures: `mean` `(figures,)`, `drawn` `(resamples, figures)`."""

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
    """Return the numbers of candidates to look at, smallest first, none above the pool."""
    return sorted({min(number, pool) for number in num_candidates})


def compare_systems(
    measured: Sequence[Measured],
    num_candidates: Sequence[int],
    *,
    resamples: int,
    seed: int,
) -> list[System]:
    """Work out the figures of one direction for every model and number of candidates.

    Args:
        measured: One a model, all of the same queries.
        num_candidates: Sweep.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ConfigError: The models were asked different queries.
    """
    for other in measured[1:]:
        if [*other.rankings.queries] != [*measured[0].rankings.queries]:
            raise ConfigError(
                f"{other.model} and {measured[0].model} were asked different queries; "
                "only the same ones can be compared"
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
                    tokens_per_picture=one.tokens_per_picture,
                    bytes_per_picture=one.bytes_per_picture,
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
                )
            )
    return systems


def _samples(
    rankings: Rankings, numbers: Sequence[int], resamples: int, seed: int
) -> Iterator[_Sample]:
    """Yield the figures at each number of candidates; all resamples draw the same queries."""
    for number in numbers:
        values = figures(rankings.right_after(number), rankings.num_right)
        drawn = resampled_means(values, rankings.clusters, resamples=resamples, seed=seed)
        yield _Sample(values.mean(axis=0), drawn)


def _rounded(found: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in found.items()}
