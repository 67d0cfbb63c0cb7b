"""A pause of Python's garbage collector while many objects are made at once."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["paused_collector"]


@contextmanager
def paused_collector() -> Iterator[None]:
    """Run a short block that makes thousands of objects, none of them garbage.

    The collector runs after every few hundred new objects, and now and then goes through all
    objects of the process, the libraries' included. In a batch of searches that takes as long as
    the rest of Python's work. If another thread enables the collector, it runs as always.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
