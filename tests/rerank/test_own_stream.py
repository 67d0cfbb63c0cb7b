from __future__ import annotations

import numpy as np
import pytest
import torch

from edje_qdrant.rerank.own_stream import OwnStream

# Clock cycles that a GPU takes about a second for.
SECOND = 2_000_000_000


def test_on_a_cpu_nothing_is_queued() -> None:
    own, numbers = OwnStream(), torch.arange(5.0)
    with own.on(torch.device("cpu")):
        found = own.numbers(numbers * 2)
    np.testing.assert_array_equal(found, [0, 2, 4, 6, 8])


@pytest.mark.gpu
def test_a_result_does_not_wait_for_work_on_the_default_stream() -> None:
    own, device = OwnStream(), torch.empty(0, device="cuda").device
    with own.on(device):
        doubled = torch.ones(8, device=device) * 2
        with torch.cuda.stream(torch.cuda.default_stream(device)):
            torch.cuda._sleep(SECOND)
            busy = torch.cuda.current_stream(device).record_event()
        found = own.numbers(doubled)
        assert not busy.query()
    np.testing.assert_array_equal(found, np.full(8, 2.0))
    torch.cuda.synchronize()


@pytest.mark.gpu
def test_work_of_the_default_stream_so_far_is_seen() -> None:
    own, device = OwnStream(), torch.empty(0, device="cuda").device
    numbers = torch.zeros(1 << 20, device=device)
    torch.cuda._sleep(SECOND // 10)
    numbers.fill_(3)
    with own.on(device):
        found = own.numbers(numbers * 2)
    assert (found == 6).all()
