from __future__ import annotations

import numpy as np
import pytest

from edje_qdrant.tokens.checksum import checksums, named


def test_golden_value_holds_for_ever():
    # Stored beside tokens: another value here makes every collection written so far unreadable.
    row = np.arange(64, dtype=np.uint8)[None]
    assert checksums(row) == ["6187eb9089b0ed55"]


def test_every_single_flipped_bit_changes_it():
    row = np.random.default_rng(0).integers(0, 256, 42, dtype=np.uint8)
    flipped = np.repeat(row[None], 42 * 8, axis=0)
    for bit in range(42 * 8):
        flipped[bit, bit // 8] ^= 1 << (bit % 8)
    assert checksums(row[None])[0] not in checksums(flipped)
    assert len(set(checksums(flipped))) == 42 * 8


@pytest.mark.parametrize("width", [2, 4, 8, 16])
def test_swapped_neighbours_change_it(width):
    row = np.random.default_rng(2).integers(0, 256, 256, dtype=np.uint8)
    swapped = []
    for i in range(0, 256 - width, width):
        other = row.copy()
        other[i : i + width], other[i + width : i + 2 * width] = (
            row[i + width : i + 2 * width],
            row[i : i + width],
        )
        swapped.append(other)
    assert checksums(row[None])[0] not in checksums(np.stack(swapped))


def test_no_rows():
    assert checksums(np.empty((0, 48), np.uint8)) == []


def test_names_a_few():
    assert named(["a", "b"]) == "a, b"
    assert named(list("abcde")) == "a, b, c and 2 more"
