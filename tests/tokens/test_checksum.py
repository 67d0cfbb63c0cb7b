from __future__ import annotations

import numpy as np
import pytest

from edje_qdrant.errors import TokensCorruptError
from edje_qdrant.tokens.checksum import checksums, require_checksums


def literal_checksum(data: bytes) -> str:
    """Compute the same in plain integers: two sums of 64-bit words times SplitMix64 numbers."""
    mask = 2**64 - 1
    data += bytes(-len(data) % 8)
    state, numbers = 0, []
    for _ in range(len(data) // 4):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        numbers.append((z ^ (z >> 31)) | 1)
    first = second = 0
    for i in range(len(data) // 8):
        first += int.from_bytes(data[8 * i : 8 * i + 8], "little") * numbers[2 * i]
        if 8 * i + 12 <= len(data):
            word = int.from_bytes(data[8 * i + 4 : 8 * i + 12], "little")
            second += word * numbers[2 * i + 1]
    return f"{first & mask:016x}{second & mask:016x}"


@pytest.mark.parametrize("nbytes", [1, 2, 7, 8, 9, 16, 42, 48, 1536])
def test_equals_plain_integers(nbytes):
    rows = np.random.default_rng(nbytes).integers(0, 256, (5, nbytes), dtype=np.uint8)
    assert checksums(rows) == [literal_checksum(row.tobytes()) for row in rows]


def test_golden_value_holds_for_ever():
    # Stored beside tokens: another value here makes every collection written so far unreadable.
    row = np.arange(64, dtype=np.uint8)[None]
    assert checksums(row) == ["adb5f1dcd42989906c117ad41794f674"]


def test_every_single_flipped_bit_changes_it():
    row = np.random.default_rng(0).integers(0, 256, 42, dtype=np.uint8)
    flipped = np.repeat(row[None], 42 * 8, axis=0)
    for bit in range(42 * 8):
        flipped[bit, bit // 8] ^= 1 << (bit % 8)
    assert checksums(row[None])[0] not in checksums(flipped)
    assert len(set(checksums(flipped))) == 42 * 8


def test_top_bits_of_two_words_flipped_together_change_it():
    # One sum of words times odd weights misses each of these.
    row = np.random.default_rng(1).integers(0, 256, 128, dtype=np.uint8)
    pairs = [(i, j) for i in range(16) for j in range(i)]
    flipped = np.repeat(row[None], len(pairs), axis=0)
    for k, (i, j) in enumerate(pairs):
        flipped[k, 8 * i + 7] ^= 128
        flipped[k, 8 * j + 7] ^= 128
    assert checksums(row[None])[0] not in checksums(flipped)


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


def test_require_names_the_pictures_that_differ():
    rows = np.random.default_rng(3).integers(0, 256, (4, 48), dtype=np.uint8)
    references = [{"checksum": c} for c in checksums(rows)]
    require_checksums(list("abcd"), references, rows, where="here")
    references[1] = {"checksum": references[2]["checksum"]}
    references[3] = {}
    with pytest.raises(TokensCorruptError, match="b, d in here") as caught:
        require_checksums(list("abcd"), references, rows, where="here")
    assert caught.value.image_ids == ("b", "d")
