"""Ordered work in threads, batches, and a lock for transformers."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["TRANSFORMERS_LOCK", "batches", "in_threads"]

#: Held while names are imported from transformers and while it creates a model. Its modules import
#: each other in circles, so that a second thread can find one half imported; and creating a model
#: replaces torch's functions that initialise weights, for all threads.
TRANSFORMERS_LOCK = threading.RLock()

T = TypeVar("T")
R = TypeVar("R")


def in_threads(
    pool: ThreadPoolExecutor,
    function: Callable[[T], R],
    items: Iterable[T],
    ahead: int,
    weight: Callable[[T], int] = lambda _: 1,
) -> Iterator[R]:
    """Yield `function(item)` in order, while further items are processed.

    Args:
        pool: The threads.
        function: Called in the threads.
        items: Its arguments.
        ahead: Sum of the weights of the items processed ahead, beside the next one.
        weight: Returns the weight of an item; by default each counts as one.
    """
    waiting: deque[tuple[Future[R], int]] = deque()
    total = 0
    for item in items:
        waiting.append((pool.submit(function, item), weight(item)))
        total += waiting[-1][1]
        while total - waiting[0][1] >= ahead:
            future, own = waiting.popleft()
            total -= own
            yield future.result()
            if not waiting:
                break
    while waiting:
        yield waiting.popleft()[0].result()


def batches(
    items: Iterable[T],
    size: int,
    weight: Callable[[T], int] = lambda _: 0,
    most: int = 0,
) -> Iterator[list[T]]:
    """Yield lists of `size` items; the last one may be shorter.

    Args:
        items: The items.
        size: Their number in a list.
        weight: Returns the weight of an item.
        most: A list ends with the item that makes its weight larger than this.
    """
    batch: list[T] = []
    total = 0
    for item in items:
        batch.append(item)
        total += weight(item)
        if len(batch) == size or total > most:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch
