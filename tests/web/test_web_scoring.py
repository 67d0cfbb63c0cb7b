from __future__ import annotations

import threading
import time

import pytest

from edje_qdrant.errors import ConfigError
from edje_qdrant.web.scoring import BusyError, ScoringThread


class Held:
    """Searches that wait until they are let go, so that others gather behind them."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.options: list[dict] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def search_batch(self, texts, **options):
        self.begun.set()
        assert self.go_on.wait(10)
        self.batches.append([*texts])
        self.options.append(options)
        if "bad" in texts:
            raise ConfigError("bad")
        return [text.upper() for text in texts]


@pytest.fixture
def held():
    return Held()


@pytest.fixture
def thread(held):
    thread = ScoringThread(held.search_batch, max_batch=3, wait_ms=0, max_waiting=6)
    yield thread
    held.go_on.set()
    thread.close()


def test_those_that_came_meanwhile_are_done_together(thread, held):
    first = thread.search("a", {"top_k": 1})
    assert held.begun.wait(10)
    others = [thread.search(text, {"top_k": 1}) for text in "bcde"]
    held.go_on.set()
    assert [future.result(10)[0] for future in (first, *others)] == [*"ABCDE"]
    assert held.batches == [["a"], ["b", "c", "d"], ["e"]]


def test_only_searches_with_the_same_options_are_done_together(thread, held):
    first = thread.search("a", {"top_k": 1})
    assert held.begun.wait(10)
    futures = [thread.search(text, {"top_k": 1 + (text in "ce")}) for text in "bcde"]
    work = thread.do(lambda: "work")
    held.go_on.set()
    assert [future.result(10)[0] for future in (first, *futures)] == [*"ABCDE"]
    assert work.result(10) == "work"
    assert held.batches == [["a"], ["b", "d"], ["c", "e"]]


def test_one_that_is_wrong_is_not_the_others_loss(thread, held):
    first = thread.search("a", {})
    assert held.begun.wait(10)
    futures = [thread.search(text, {}) for text in ("b", "bad", "c")]
    held.go_on.set()
    assert first.result(10)[0] == "A"
    assert futures[0].result(10)[0] == "B"
    assert futures[2].result(10)[0] == "C"
    with pytest.raises(ConfigError):
        futures[1].result(10)


def test_too_many_are_turned_away_and_those_given_up_are_not_done(thread, held):
    first = thread.search("a", {})
    assert held.begun.wait(10)
    futures = [thread.search(text, {}) for text in "bcdefg"]
    with pytest.raises(BusyError):
        thread.search("h", {})
    assert futures[0].cancel()
    held.go_on.set()
    assert first.result(10)[0] == "A"
    assert futures[-1].result(10)[0] == "G"
    assert ["b"] not in [batch[:1] for batch in held.batches]


def test_waiting_counts_towards_a_budget(thread, held):
    first = thread.search("a", {"budget_ms": 1e6})
    assert held.begun.wait(10)
    second = thread.search("b", {"budget_ms": 1e6})
    time.sleep(0.005)
    held.go_on.set()
    assert second.result(10)[1] > 0
    assert first.done()
    assert held.options[1]["budget_ms"] < 1e6


def test_the_end_waits_for_what_is_there(held):
    thread = ScoringThread(held.search_batch)
    future = thread.search("a", {})
    held.go_on.set()
    thread.close()
    assert future.result(0)[0] == "A"
    assert not thread.alive
    with pytest.raises(BusyError):
        thread.search("b", {})


def test_answers_that_do_not_fit_do_not_end_the_thread():
    thread = ScoringThread(lambda texts: [])
    with pytest.raises(ValueError, match="zip"):
        thread.search("a", {}).result(10)
    assert thread.do(lambda: 2).result(10) == 2
    thread.close()


def test_work_that_fails_does_not_end_the_thread(thread, held):
    held.go_on.set()
    with pytest.raises(ZeroDivisionError):
        thread.do(lambda: 1 / 0).result(10)
    assert thread.do(lambda: 2).result(10) == 2
