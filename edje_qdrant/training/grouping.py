"""Batches of similar images, so that the wrong images and captions of a batch are hard ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import ConfigError

__all__ = ["Grouping", "RowOrder", "chain"]

# Pairs that can be grouped together. The time grows with their square: 6 s for these at 768
# dimensions, on two cores.
_MOST_PAIRS = 8192
_STEPS = 2047  # embeddings are rounded to this many steps, so that products are exact


class RowOrder(Protocol):
    """The rows of each batch, such as a `Mixture`."""

    def batch(self, step: int, size: int) -> NDArray[np.int64]:
        """Return source and row of each pair of a step: `(size, 2)` int64."""


class Grouping:
    """Redistribute the rows of several batches, so that similar images share a batch.

    The rows of `count` batches are ordered as a chain: the first row drawn, then always the row
    whose image is most similar to the one before. The chain is cut into batches, which follow each
    other in random order. Each row is used as often as in `order`. Source: GRIT-VLP
    (arXiv 2208.04060), 3.2, which groups the batches of a queue in this way.

    Args:
        order: The batches to redistribute.
        embeddings: Rows `(n, 2)`, source and row -> embeddings `(n, d)`, unit length.
        count: Number of batches that are redistributed together.
        seed: Of the order of the batches.

    Raises:
        ConfigError: `count` is below 2.
    """

    def __init__(
        self, order: RowOrder, embeddings: Callable[[NDArray[np.int64]], NDArray[np.float32]],
        *, count: int, seed: int,
    ) -> None:  # fmt: skip
        if count < 2:
            raise ConfigError(f"2 or more batches can be grouped, not {count}")
        self._order, self._embeddings, self._count, self._seed = order, embeddings, count, seed
        self._last: tuple[tuple[int, int], NDArray[np.int64]] | None = None

    def batch(self, step: int, size: int) -> NDArray[np.int64]:
        """Return source and row of each pair of a step: `(size, 2)` int64.

        Raises:
            ConfigError: The step is negative, the size is below 1, or the batches have too many
                pairs to be grouped.
        """
        pairs = self._count * size
        if pairs > _MOST_PAIRS:
            raise ConfigError(
                f"grouped_batches is {self._count} and a batch has {size:,} pairs, {pairs:,} "
                f"together; at most {_MOST_PAIRS:,} can be grouped, so set it to "
                f"{max(1, _MOST_PAIRS // size)} or less (1 does not group)"
            )
        group, number = divmod(step, self._count)
        if self._last is None or self._last[0] != (group, size):
            self._last = (group, size), self._grouped(group, size)
        rows: NDArray[np.int64] = self._last[1][number]
        return rows

    def _grouped(self, group: int, size: int) -> NDArray[np.int64]:
        """Return the rows of a group's batches: `(count, size, 2)` int64."""
        first = group * self._count
        rows = np.concatenate([self._order.batch(first + n, size) for n in range(self._count)])
        batches = rows[chain(self._embeddings(rows))].reshape(self._count, size, 2)
        return batches[np.random.default_rng([self._seed, group]).permutation(self._count)]


def chain(embeddings: NDArray[np.float32]) -> NDArray[np.int64]:
    """Order rows so that each is the one most similar to the row before, of those that are left.

    Args:
        embeddings: `(n, d)`, unit length.

    Returns:
        `(n,)` int64, a permutation that begins with 0. It is the same on every machine: products
        of rounded embeddings are exact, and the first of equally similar rows is taken.
    """
    whole = np.round(embeddings.astype(np.float64) * _STEPS)  # (n, d)
    left = np.ones(len(whole), bool)
    found = np.zeros(len(whole), np.int64)
    for place in range(1, len(whole)):
        left[found[place - 1]] = False
        similar = whole @ whole[found[place - 1]]  # (n,)
        found[place] = np.where(left, similar, -np.inf).argmax()
    return found
