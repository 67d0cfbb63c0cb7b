"""Batches for requests, limited by number and by bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

from edje_qdrant.index.validate import FLOAT_BYTES, CheckedPayload

__all__ = ["by_payload", "in_batches", "in_runs", "vectors_per_request"]

# A Qdrant server refuses requests above 32 MB; half of that leaves room for estimates.
_REQUEST_BYTES = 16_000_000


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


S = TypeVar("S", bound=_Sized)
T = TypeVar("T")


def in_batches(items: Sequence[S], size: int) -> Iterator[list[S]]:
    """Yield batches of at most `size` items and 16 MB; a larger item is a batch of its own."""
    batch: list[S] = []
    nbytes = 0
    for item in items:
        if batch and (len(batch) == size or nbytes + item.nbytes > _REQUEST_BYTES):
            yield batch
            batch, nbytes = [], 0
        batch.append(item)
        nbytes += item.nbytes
    if batch:
        yield batch


def in_runs(items: list[T], size: int) -> Iterator[list[T]]:
    """Yield batches of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def by_payload(items: Sequence[CheckedPayload]) -> list[tuple[list[str], dict[str, Any]]]:
    """Group by equal payload: return `(ids, payload)` for each."""
    groups: dict[bytes, tuple[list[str], dict[str, Any]]] = {}
    for item in items:
        groups.setdefault(item.text, ([], item.payload))[0].append(item.id)
    return list(groups.values())


def vectors_per_request(dim: int) -> int:
    """Return how many `dim`-wide vectors fit into 16 MB of JSON."""
    return max(1, _REQUEST_BYTES // (dim * FLOAT_BYTES))
