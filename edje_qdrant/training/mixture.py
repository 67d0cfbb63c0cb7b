"""The order in which training visits the rows of its sources."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import ConfigError

__all__ = ["Mixture"]

_KEPT_EPOCHS = 3  # the current, the one before and the one after: batches may span two


class Mixture:
    """Mix sources by weight; a batch depends on its number alone.

    A weight is the number of passes through a source per epoch: 1 is once, 2 twice, 0.5 a random
    half that differs between epochs. Each epoch has its own order, and epochs follow each other
    without a gap, so that a batch may span two. No batch has a row twice if all weights are at
    most 1 and an epoch has at least two batches.

    Args:
        lengths: Number of rows of each source.
        weights: Passes through each source per epoch.
        seed: Of the order.
        usable: By source, the rows to draw from; all rows by default.

    Attributes:
        rows_per_epoch: Rows of all sources in one epoch.

    Raises:
        ConfigError: A weight is missing or not positive, or there are no rows.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        weights: Sequence[float],
        *,
        seed: int,
        usable: Sequence[NDArray[np.int64]] | None = None,
    ) -> None:
        if len(lengths) != len(weights) or (usable is not None and len(usable) != len(lengths)):
            raise ConfigError(f"{len(lengths)} sources need as many weights, not {len(weights)}")
        if not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise ConfigError(f"weights must be greater than 0, got {list(weights)}")
        self._seed = seed
        self._weights = tuple(float(weight) for weight in weights)
        self._usable = usable
        counts = lengths if usable is None else [len(rows) for rows in usable]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.rows_per_epoch = sum(
            int(weight) * count + _part(weight, count)
            for weight, count in zip(self._weights, counts, strict=True)
        )
        if self.rows_per_epoch == 0:
            raise ConfigError(
                f"an epoch has no images: the sources have {list(counts)} readable images and the "
                f"weights {list(weights)}; check the paths, or raise the weights"
            )
        self._shuffled: dict[int, NDArray[np.int32 | np.int64]] = {}
        self._arranged: dict[tuple[int, int], NDArray[np.int32 | np.int64]] = {}

    def batch(self, step: int, size: int) -> NDArray[np.int64]:
        """Return source and row of each pair of a step: `(size, 2)` int64.

        Raises:
            ConfigError: The step is negative or the size below 1.
        """
        if step < 0 or size < 1:
            raise ConfigError(
                f"no batch {step} of {size} rows; a step is 0 or more and a size 1 or more"
            )
        position, end = step * size, (step + 1) * size
        parts = []
        while position < end:
            epoch, start = divmod(position, self.rows_per_epoch)
            part = self._epoch(epoch, size)[start : start + end - position]
            parts.append(part)
            position += len(part)
        numbers = np.concatenate(parts)
        source = np.searchsorted(self._starts, numbers, side="right") - 1
        row = numbers - self._starts[source]
        if self._usable is not None:
            for number in np.unique(source):
                mine = source == number
                row[mine] = self._usable[number][row[mine]]
        return np.stack([source, row], axis=1).astype(np.int64)

    def epoch_of(self, step: int, size: int) -> float:
        """Return the number of epochs completed before a step, as a fraction."""
        return step * size / self.rows_per_epoch

    def _epoch(self, epoch: int, size: int) -> NDArray[np.int32 | np.int64]:
        """Return an epoch's rows, numbered across all sources, for batches of `size`.

        The batch that spans this epoch and the next must not have a row twice. Rows at the end of
        this epoch that the next one begins with are swapped with rows before the batch.
        """
        if (epoch, size) in self._arranged:
            return self._arranged[epoch, size]
        numbers = self._shuffle(epoch)
        rows = self.rows_per_epoch
        tail = (epoch + 1) * rows % size
        if max(self._weights) <= 1 and 0 < tail < rows:
            begun = min(-(epoch * rows) % size, rows)  # belongs to the previous batch; not changed
            ahead = self._shuffle(epoch + 1)[: size - tail]
            cut = max(rows - tail, begun)
            clash = cut + np.flatnonzero(np.isin(numbers[cut:], ahead))
            low = max(begun, cut - size)  # enough: at most `size` rows clash
            free = low + np.flatnonzero(~np.isin(numbers[low:cut], ahead))[::-1]
            count = min(len(clash), len(free))
            numbers = numbers.copy()
            numbers[clash[:count]], numbers[free[:count]] = (
                numbers[free[:count]],
                numbers[clash[:count]],
            )
        _keep(self._arranged, (epoch, size), numbers)
        return numbers

    def _shuffle(self, epoch: int) -> NDArray[np.int32 | np.int64]:
        if epoch not in self._shuffled:
            rng = np.random.default_rng([self._seed, epoch])
            kind = np.int32 if self._starts[-1] < 2**31 else np.int64
            parts = []
            for source, weight in enumerate(self._weights):
                start, end = self._starts[source : source + 2]
                rows = np.arange(start, end, dtype=kind)
                parts += [rows] * int(weight)
                if chosen := _part(weight, len(rows)):
                    parts.append(rng.choice(rows, chosen, replace=False, shuffle=False))
            _keep(self._shuffled, epoch, rng.permutation(np.concatenate(parts)))
        return self._shuffled[epoch]


def _part(weight: float, count: int) -> int:
    """Return the number of rows for the fractional part of a weight."""
    return round((weight - int(weight)) * count)


def _keep(cache: dict, key: object, value: object) -> None:  # type: ignore[type-arg]
    cache[key] = value
    while len(cache) > _KEPT_EPOCHS:
        del cache[next(iter(cache))]
