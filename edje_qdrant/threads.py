"""Ordered work in threads, batches, and a lock for transformers."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

__all__ = ["TRANSFORMERS_LOCK", "batches", "in_threads"]

#: Held while names are imported from transformers and while it creates a model. Its modules import
#: each other in circles, so that a second thread can find one half imported; and creating a model
#: replaces torch's functions that initialise weights, for all threads.
TRANSFORMERS_LOCK = threading.RLock()

T = TypeVar("T")
R = TypeVar("R")


def in_threads(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """Yield `function(item)` in order, while up to `ahead` further items are processed."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
