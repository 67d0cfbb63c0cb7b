from __future__ import annotations

import pytest

from edje_qdrant.rerank.deadline import Deadline, Pace


def test_time_without_a_budget_does_not_end() -> None:
    assert Deadline(None).left == float("inf")
    assert Deadline(1e-9).left < 0


def test_a_slice_costs_something_however_small_it_is() -> None:
    pace = Pace()
    assert pace.pairs_in(1.0) is None
    pace.observe(4, 0.014)  # ten milliseconds, and one for each pair
    assert pace.pairs_in(0.035) == 10  # nothing tells them apart yet
    pace.observe(40, 0.050)
    assert pace.pairs_in(0.030) == pytest.approx(20, abs=1)
    assert pace.pairs_in(0.009) == 0


def test_what_was_seen_lately_counts_for_more() -> None:
    pace = Pace()
    pace.observe(50, 5.0)
    for _ in range(10):
        pace.observe(50, 0.050)
    assert pace.pairs_in(0.050) == pytest.approx(45, abs=6)


def test_one_slow_slice_does_not_prevent_later_ones() -> None:
    pace = Pace()
    pace.observe(4, 40.0)
    tries = 0
    while pace.pairs_in(0.1) == 0:
        pace.relax()
        tries += 1
        assert tries < 60
    pace.observe(4, 0.001)
    pace.observe(20, 0.005)
    assert (pace.pairs_in(0.1) or 0) > 0


def test_a_small_slice_that_took_longer_than_a_large_one_is_no_reason_to_stop() -> None:
    pace = Pace()
    pace.observe(4, 0.5)
    pace.observe(40, 0.1)
    assert (pace.pairs_in(0.2) or 0) > 40
