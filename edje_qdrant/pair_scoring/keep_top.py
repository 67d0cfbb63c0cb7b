"""Selection of the best share of scored pairs, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import StoreError
from edje_qdrant.files import os_errors_as_store_errors, replaced_file
from edje_qdrant.pair_scoring.score_file import ScoredPair

__all__ = ["keep_top"]

_LINES = 4096


def keep_top(
    scores: Path, kept: Path, share: float, moved: Callable[[int], object]
) -> tuple[int, float | None]:
    """Copy a finished score file with `keep` set for the best pairs; memory use is constant.

    The score at the cut-off is determined exactly, in two passes that build histograms of the
    float32 scores by the upper and then by the lower half of their bits. All pairs with that score
    are kept, so that equal scores can make the share larger.

    Args:
        scores: The finished score file.
        kept: The copy; replaced atomically.
        share: Share of the pairs with a score; the number of pairs is rounded.
        moved: Called with the number of lines of each step of the last pass.

    Returns:
        The number of pairs kept and the lowest score among them, None if no pair is kept.

    Raises:
        StoreError: A file cannot be read or written.
    """
    with os_errors_as_store_errors("write", kept):
        lowest = _score_at(scores, share)
        count = 0
        with replaced_file(kept) as file:
            for block in _blocks(scores):
                for pair in block:
                    keep = pair.score is not None and lowest is not None and pair.score >= lowest
                    count += keep
                    file.write(replace(pair, keep=keep).line())
                moved(len(block))
    return count, lowest


def _score_at(scores: Path, share: float) -> float | None:
    """Return the lowest score among the given share of the best pairs."""
    upper = np.zeros(1 << 16, np.int64)
    for keys in _keys(scores):
        upper += np.bincount(keys >> 16, minlength=1 << 16)
    wanted = round(share * int(upper.sum()))
    if not wanted:
        return None
    high, above = _bin_of(upper, wanted)
    lower = np.zeros(1 << 16, np.int64)
    for keys in _keys(scores):
        lower += np.bincount(keys[keys >> 16 == high] & 0xFFFF, minlength=1 << 16)
    low, _ = _bin_of(lower, wanted - above)
    key = np.array([high << 16 | low], np.uint32)
    bits = np.where(key >> 31, key ^ np.uint32(1 << 31), ~key)
    return float(str(bits.view(np.float32)[0]))


def _bin_of(counts: NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """Return the bin of the `wanted`-th highest score, and the number of scores in higher bins."""
    reached = np.cumsum(counts[::-1])
    place = int(np.searchsorted(reached, wanted))
    return len(counts) - 1 - place, int(reached[place] - counts[::-1][place])


def _keys(scores: Path) -> Iterator[NDArray[np.uint32]]:
    """Yield the scores as unsigned integers with the same order."""
    for block in _blocks(scores):
        found = np.array([pair.score for pair in block if pair.score is not None], np.float32)
        bits = (found + 0).view(np.uint32)  # turns -0 into 0, which is equal
        yield np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _blocks(scores: Path) -> Iterator[list[ScoredPair]]:
    block: list[ScoredPair] = []
    with scores.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                block.append(ScoredPair.of(line))
            except ValueError as error:
                raise StoreError(f"{scores}:{number}: {error}; the file was changed") from error
            if len(block) == _LINES:
                yield block
                block = []
    yield block
