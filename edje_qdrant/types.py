"""Frozen dataclasses that cross rooms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.cursor import Cursor, Place, encode_cursor
from edje_qdrant.errors import ConfigError

__all__ = [
    "Candidate",
    "FailedImage",
    "ImageEncoding",
    "IngestReport",
    "Payload",
    "Point",
    "SearchHit",
    "SearchResult",
    "Timings",
]

Payload = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ImageEncoding:
    """Hold what a model makes of `n` pictures.

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
    """Hold one picture as the vector engine stores it.

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
    """Hold one picture as the first stage returns it.

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
class SearchHit:
    """Hold one picture of a search result.

    Attributes:
        image_id: UUID string, made from the picture's content.
        score: The joint encoder's logit; higher is better. Comparable within one query. None where
            the picture was not scored.
        rank: Place in the result, from 1; pages count on.
        retrieval_score: The first stage's cosine (no cosine after `recommend` with `best_score`).
        retrieval_rank: Place among the candidates of the first stage, from 1.
        payload: What was stored with the picture (`path` and the user's fields).
        probability: That text and picture match; None where the model holds no calibration.
        fusion_score: What ranked the picture, where the stages' scores were put together.
        group: Value of the field that groups pictures, where one does and the picture has it.
    """

    image_id: str
    score: float | None
    rank: int
    retrieval_score: float
    retrieval_rank: int
    payload: Payload
    probability: float | None = None
    fusion_score: float | None = None
    group: Any = None


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
class SearchResult(Sequence[SearchHit]):
    """Hold the answer to one query: a sequence of hits, best first.

    The ranking goes on where the hits end: `next` and `cursor` give further pages of it. It is made
    of the candidates of one search, so pages never repeat a picture, nor leave one out.

    Attributes:
        query: The text as asked; for a picture, its path.
        hits: Best first.
        timings: Milliseconds by stage.
        degraded: Whether the ranking is less than was asked for.
        reason: Why, when it is.
        candidates: Pictures that the first stage found.
        scored: Those of them that the joint encoder scored.
        remaining: What ranks behind the hits, best first.
        group_by: The field that groups pictures, where one does.
        source: The collection searched, for cursors.
    """

    query: str
    hits: tuple[SearchHit, ...]
    timings: Timings
    degraded: bool = False
    reason: str | None = None
    candidates: int = 0
    scored: int = 0
    remaining: tuple[SearchHit, ...] = field(default=(), repr=False)
    group_by: str | None = field(default=None, repr=False)
    source: str = field(default="", repr=False)

    def next(self, count: int = 10) -> SearchResult:
        """Return the next page; empty past the last candidate.

        Nothing is searched or read again. In another process, use `cursor`.

        Args:
            count: Hits of the page, at most.

        Raises:
            ConfigError: `count` is below 1.
        """
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ConfigError(f"count is {count!r}; ask for 1 picture or more")
        hits, remaining = self.remaining[:count], self.remaining[count:]
        return replace(self, hits=hits, remaining=remaining, timings=Timings(0, 0, 0, 0))

    @property
    def cursor(self) -> str | None:
        """Return a text from which `TwoStageRetriever.resume` goes on; None past the last hit.

        It holds the order and the scores of what remains, and nothing secret but the query.
        """
        if not self.remaining:
            return None
        places = [
            Place(
                hit.image_id,
                hit.score,
                hit.probability,
                hit.fusion_score,
                hit.retrieval_score,
                hit.retrieval_rank,
            )
            for hit in self.remaining
        ]
        return encode_cursor(
            Cursor(
                self.source,
                self.query,
                self.remaining[0].rank,
                places,
                self.group_by,
                self.degraded,
                self.reason,
                self.candidates,
                self.scored,
            )
        )

    @overload
    def __getitem__(self, index: int) -> SearchHit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[SearchHit, ...]: ...
    def __getitem__(self, index: int | slice) -> SearchHit | tuple[SearchHit, ...]:
        return self.hits[index]

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[SearchHit]:
        return iter(self.hits)


@dataclass(frozen=True, slots=True)
class FailedImage:
    """Name a picture that was not ingested, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class IngestReport:
    """Sum up one ingest.

    Attributes:
        added: Pictures now in the collection that were not before.
        skipped: Pictures that were there already (the same content, or twice in the source).
        failed: Pictures that could not be read, each with the reason.
        seconds: Wall-clock time of the whole.
        pruned: Pictures deleted because they are gone from the source.
    """

    added: int
    skipped: int
    failed: tuple[FailedImage, ...] = field(default=())
    seconds: float = 0.0
    pruned: int = 0

    @property
    def images_per_second(self) -> float:
        """Return pictures added each second."""
        return self.added / self.seconds if self.seconds > 0 else 0.0
