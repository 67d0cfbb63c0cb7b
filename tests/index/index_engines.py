"""Engines to test with, and data to put into them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.index import (
    QdrantOptions,
    VectorIndex,
    create_embedded,
    create_on_server,
    open_embedded,
    open_on_server,
)
from edje_qdrant.types import Point

if TYPE_CHECKING:  # takes longer to import than the processes of the tests run
    from qdrant_client import QdrantClient

# A long timeout: on a busy machine nothing here may depend on the clock.
FAST = QdrantOptions(timeout=120, batch_size=50, retries=3, backoff=0.01)


class Engine:
    """Create and open indexes on one engine, and close what a test left open."""

    def __init__(
        self,
        create: Callable[[str, int, Mapping[str, Any]], VectorIndex],
        reopen: Callable[[str], VectorIndex],
    ) -> None:
        self._create, self._open = create, reopen
        self.opened: list[VectorIndex] = []
        self._at_end: list[Callable[[], object]] = []

    def closing(self, function: Callable[[], object]) -> None:
        """Call a function once all indexes are closed."""
        self._at_end.append(function)

    def create(
        self, name: str = "images", dim: int = 8, metadata: Mapping[str, Any] | None = None
    ) -> VectorIndex:
        self.opened.append(self._create(name, dim, metadata or {}))
        return self.opened[-1]

    def open(self, name: str = "images") -> VectorIndex:
        self.opened.append(self._open(name))
        return self.opened[-1]

    def close(self) -> None:
        for index in self.opened:
            index.close()
        for function in self._at_end:
            function()


def edge_engine(folder: Path) -> Engine:
    return Engine(
        lambda name, dim, metadata: create_embedded(folder / name, dim, metadata),
        lambda name: open_embedded(folder / name),
    )


def faiss_engine(folder: Path) -> Engine:
    return Engine(
        lambda name, dim, metadata: create_embedded(folder / name, dim, metadata, "faiss"),
        lambda name: open_embedded(folder / name),
    )


def qdrant_engine(location: str | QdrantClient, options: QdrantOptions = FAST) -> Engine:
    return Engine(
        lambda name, dim, metadata: create_on_server(location, name, dim, metadata, options),
        lambda name: open_on_server(location, name, options),
    )


def image_id(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, str(number)))


def unit_vectors(count: int, dim: int = 8, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_points(vectors: NDArray[np.float32], start: int = 0) -> list[Point]:
    return [
        Point(
            image_id(start + n),
            vector,
            {"path": f"{start + n}.png", "_edje": {"record": start + n, "tokens": "QUJD" * 10}},
        )
        for n, vector in enumerate(vectors)
    ]
