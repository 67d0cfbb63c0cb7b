from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gpu_waits import never_waiting_for_the_gpu

from edje_qdrant.rerank.token_feed import TokenFeed, to_device

TOKENS = np.random.default_rng(0).normal(size=(11, 3, 4)).astype(np.float16)
ORDER = np.array([4, 0, 10, 2, 2, 7, 1, 3, 9, 8, 5], np.intp)


def backwards() -> Any:
    return TOKENS[::-1].copy()[::-1]


def read_only() -> Any:
    given = TOKENS.copy()
    given.flags.writeable = False
    return given


def every_second() -> Any:
    return np.repeat(TOKENS, 2, axis=0)[::2]


SOURCES = {
    "array": TOKENS.copy,
    "read-only": read_only,
    "backwards": backwards,
    "every second": every_second,
    "float32": lambda: TOKENS.astype(np.float32),
    "tensor": lambda: torch.from_numpy(TOKENS.copy()),
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("source", SOURCES)
def test_batches_hold_the_tokens_in_order(source: str, ordered: bool, device: str) -> None:
    feed = TokenFeed(SOURCES[source](), ORDER if ordered else None, torch.device(device))
    parts = [feed.batch(start, min(start + 3, 11)) for start in range(0, 11, 3)]
    assert {part.device.type for part in parts} == {device}
    expected = TOKENS[ORDER] if ordered else TOKENS
    np.testing.assert_array_equal(torch.cat(parts).cpu().numpy(), expected)
    # The same batch again, and a part of it, as after an error.
    np.testing.assert_array_equal(feed.batch(9, 11).cpu().numpy(), expected[9:])


def test_tokens_in_their_own_order_are_not_copied() -> None:
    tokens = torch.from_numpy(TOKENS.copy())
    part = TokenFeed(tokens, None, torch.device("cpu")).batch(2, 5)
    assert part.data_ptr() == tokens[2].data_ptr()


@pytest.mark.gpu
def test_many_batches_from_host_memory_do_not_overtake_each_other() -> None:
    tokens = torch.randn(64 * 50, 8, 64)
    feed = TokenFeed(tokens, np.arange(64 * 50)[::-1].copy(), torch.device("cuda"))
    weight = torch.randn(64, 64, device="cuda")
    sums = []
    for start in range(0, 64 * 50, 64):
        part = feed.batch(start, start + 64)
        for _ in range(20):  # the GPU is slower than the copies
            weight = weight @ weight
            weight.div_(weight.norm())
        sums.append(part.sum(dim=(1, 2)) + 0 * weight[0, 0])
        del part
    found = torch.cat(sums).cpu()
    torch.testing.assert_close(found, tokens.flip(0).sum(dim=(1, 2)), atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
def test_a_tensor_goes_to_a_gpu_without_waiting_for_it() -> None:
    numbers = torch.arange(1000)
    with never_waiting_for_the_gpu():
        there = to_device(numbers, torch.device("cuda"))
    assert torch.equal(there.cpu(), numbers)
