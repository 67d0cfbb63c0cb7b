from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch

from edje_qdrant.rerank.lru_rows import LruRows
from edje_qdrant.tokens.codecs import codec_for

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def make_rows(capacity: int, device: str = "cpu") -> LruRows:
    return LruRows(codec_for("float16", 1, 2), capacity, 1, torch.float32, torch.device(device))


def of(keys: list[str], device: str = "cpu") -> torch.Tensor:
    return torch.tensor([[float(key)] for key in keys], device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("capacity", [1, 7, 200])
def test_rows_are_replaced_as_in_an_ordered_dict(capacity: int, device: str) -> None:
    rows, expected = make_rows(capacity, device), OrderedDict[str, None]()
    rng = np.random.default_rng(capacity)
    for _ in range(300):
        keys = [str(n) for n in rng.zipf(1.3, size=rng.integers(1, 12)) % (2 * capacity)]
        slots = rows.find(keys)
        assert [slot >= 0 for slot in slots.tolist()] == [key in expected for key in keys]
        present = slots[slots >= 0]
        found = [key for key in keys if key in expected]
        torch.testing.assert_close(rows.take(present), of(found, device).view(-1, 1))
        for key in found:
            expected.move_to_end(key)
        new = [*dict.fromkeys(key for key in keys if key not in expected)]
        rows.put(new, of(new, device))
        for key in new[:capacity]:
            if len(expected) == capacity:
                expected.popitem(last=False)
            expected[key] = None
        assert len(rows) == len(expected)
    kept = [*expected]
    torch.testing.assert_close(rows.take(rows.find(kept)), of(kept, device))


def test_rows_that_are_present_stay_as_they_are() -> None:
    rows = make_rows(3)
    rows.put(["1", "2"], of(["1", "2"]))
    rows.put(["2", "3"], of(["9", "3"]))
    assert rows.take(rows.find(["1", "2", "3", "2"])).flatten().tolist() == [1, 2, 3, 2]
    assert rows.find(["4"]).tolist() == [-1]


def test_no_rows_are_kept_without_room() -> None:
    rows = make_rows(0)
    rows.put(["1"], of(["1"]))
    assert (len(rows), rows.nbytes) == (0, 0)
