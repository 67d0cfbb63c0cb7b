"""Bootstrap of metrics over images: percentile intervals and paired differences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import ConfigError

__all__ = ["LEVEL", "RESAMPLES", "Difference", "difference", "interval", "resampled_means"]

#: Share of the resamples that an interval contains.
LEVEL = 0.95

#: Default number of resamples; more change the ends of an interval only slightly.
RESAMPLES = 1000

_CELLS = 1 << 24


@dataclass(frozen=True, slots=True)
class Difference:
    """Hold the difference between two systems on the same queries.

    Attributes:
        mean: The difference of the two means.
        low: The interval's lower end.
        high: Its upper end.
        share_above_0: Share of the resamples in which the first system is better, ties excluded.
    """

    mean: float
    low: float
    high: float
    share_above_0: float

    def as_dict(self) -> dict[str, float]:
        """Return the difference as a JSON object."""
        return {
            "mean": round(self.mean, 5),
            "low": round(self.low, 5),
            "high": round(self.high, 5),
            "share_above_0": round(self.share_above_0, 4),
        }


def resampled_means(
    values: NDArray[np.float64],
    clusters: NDArray[np.int64],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Resample whole clusters with replacement and return the mean of each resample.

    The results for the captions of one image are correlated, so resampling single captions would
    make the intervals too narrow. Images are resampled instead, each with all of its queries. For
    paired differences, pass systems measured on the same queries together as columns, or with the
    same seed: each resample then contains the same images for all of them.

    Args:
        values: `(queries, columns)` float64: the metric of each query, for each system.
        clusters: `(queries,)` int64: the image each query belongs to.
        resamples: Number of resamples.
        seed: Random seed.

    Returns:
        `(resamples, columns)` float64 means.

    Raises:
        ConfigError: There is no query, or `resamples` is below 1.
    """
    if len(values) == 0 or resamples < 1:
        raise ConfigError(
            f"cannot draw {resamples} resamples of {len(values)} queries; give 1 or more of each"
        )
    _, owner = np.unique(clusters, return_inverse=True)
    count = int(owner.max()) + 1
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, owner, values)
    sizes = np.bincount(owner, minlength=count).astype(np.float64)
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    step = max(1, _CELLS // count)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        means[start : start + rows] = (times @ sums) / (times @ sizes)[:, None]
    return means


def interval(means: NDArray[np.float64], level: float = LEVEL) -> tuple[float, float]:
    """Return the ends of the interval that contains the middle `level` of the resamples."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def difference(
    mean: float, ours: NDArray[np.float64], others: NDArray[np.float64], level: float = LEVEL
) -> Difference:
    """Compare two systems whose resamples contain the same queries.

    Args:
        mean: The difference of the two means over all queries.
        ours: `(resamples,)` means of one system.
        others: `(resamples,)` means of the other.
        level: Share of the resamples that the interval contains.
    """
    gaps = ours - others
    low, high = interval(gaps, level)
    return Difference(mean, low, high, float(np.mean(gaps > 0)))
