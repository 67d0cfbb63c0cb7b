"""Points in pages, whichever engine they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from edje_qdrant.types import Point

__all__ = ["pages"]


class _Record(Protocol):
    """Hold a point as either engine returns it."""

    @property
    def id(self) -> Any: ...
    @property
    def vector(self) -> Any: ...
    @property
    def payload(self) -> Any: ...


def pages(
    fetch: Callable[[Any], tuple[Sequence[_Record], Any]], *, vectors: bool
) -> Iterator[list[Point]]:
    """Yield points as long as there are any.

    Args:
        fetch: Takes where to start, None for the first point; returns points, and the id to start
            from next, None after the last. Starting from an id that is gone starts behind it.
        vectors: Whether the records have vectors.
    """
    start = None
    while True:
        records, start = fetch(start)
        if records:
            yield [
                Point(
                    str(record.id),
                    np.array(record.vector if vectors else [], np.float32),
                    record.payload or {},
                )
                for record in records
            ]
        if start is None:
            return
