from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from edje_qdrant.threads import batches, in_threads


def test_results_come_in_order_and_no_more_are_begun_than_allowed() -> None:
    begun: list[int] = []
    taken: list[int] = []

    def items():
        for number in range(20):
            assert number - len(taken) <= 4
            yield number

    def double(number: int) -> int:
        begun.append(number)
        return 2 * number

    with ThreadPoolExecutor(3) as pool:
        for result in in_threads(pool, double, items(), ahead=3):
            taken.append(result)  # noqa: PERF402 - items() looks at it
    assert taken == [2 * number for number in range(20)]
    assert sorted(begun) == list(range(20))


def test_items_are_worked_on_at_the_same_time() -> None:
    together = threading.Barrier(2, timeout=60)
    with ThreadPoolExecutor(2) as pool:
        assert len(list(in_threads(pool, lambda _: together.wait(), range(2), ahead=2))) == 2


def test_an_error_reaches_the_caller() -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError):
        list(in_threads(pool, lambda number: 1 // number, [1, 0], ahead=1))


def test_batches_hold_the_rest_last() -> None:
    assert list(batches(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batches([], 3)) == []
