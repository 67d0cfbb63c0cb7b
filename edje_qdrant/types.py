"""Frozen dataclasses that cross rooms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Candidate",
    "FailedImage",
    "ImageEncoding",
    "IngestReport",
    "Payload",
    "Point",
    "Timings",
]

Payload = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ImageEncoding:
    """Hold what a model makes of `n` images.

    Attributes:
        embeddings: `(n, d)` float32, unit length: the first stage's vectors.
        tokens: `(n, m, d_text)` float16: what the joint encoder reads.
    """

    embeddings: NDArray[np.float32]
    tokens: NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.embeddings)


@dataclass(frozen=True, slots=True)
class Point:
    """Hold one image as the vector engine stores it.

    Attributes:
        id: UUID string.
        vector: `(d,)` float32, unit length.
        payload: JSON-like; what concerns tokens lies under the reserved key `_edje`.
    """

    id: str
    vector: NDArray[np.float32]
    payload: Payload


@dataclass(frozen=True, slots=True)
class Candidate:
    """Hold one image as the first stage returns it.

    Attributes:
        image_id: UUID string.
        score: Cosine of text and image embedding.
        rank: Place in the first stage, from 1.
        payload: As stored, `_edje` included (without token bytes).
    """

    image_id: str
    score: float
    rank: int
    payload: Payload


@dataclass(frozen=True, slots=True)
class Timings:
    """Hold the wall-clock milliseconds each stage of one search took.

    In a batch, stages that ran for all queries at once are shared out evenly.
    """

    encode: float
    retrieve: float
    fetch: float
    rerank: float

    @property
    def total(self) -> float:
        """Sum the stages, in ms."""
        return self.encode + self.retrieve + self.fetch + self.rerank

    def as_dict(self) -> dict[str, float]:
        """Return the stages and their total by name, in ms."""
        return {
            "encode": self.encode,
            "retrieve": self.retrieve,
            "fetch": self.fetch,
            "rerank": self.rerank,
            "total": self.total,
        }


@dataclass(frozen=True, slots=True)
class FailedImage:
    """Name an image that was not ingested, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class IngestReport:
    """Sum up one ingest.

    Attributes:
        added: Images now in the collection that were not before.
        skipped: Images that were there already (the same content, or twice in the source).
        failed: Images that could not be read, each with the reason.
        seconds: Wall-clock time of the whole.
        pruned: Images deleted because they are gone from the source.
    """

    added: int
    skipped: int
    failed: tuple[FailedImage, ...] = field(default=())
    seconds: float = 0.0
    pruned: int = 0

    @property
    def images_per_second(self) -> float:
        """Return images added each second."""
        return self.added / self.seconds if self.seconds > 0 else 0.0
