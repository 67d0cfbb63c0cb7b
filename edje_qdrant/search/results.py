"""The result of a search: hits, pages and timings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

from edje_qdrant.errors import ConfigError
from edje_qdrant.search.cursor import Cursor, Place, encode_cursor
from edje_qdrant.types import Payload, Timings

__all__ = ["SearchHit", "SearchResult"]


@dataclass(frozen=True, slots=True)
class SearchHit:
    """Hold one image of a search result.

    Attributes:
        image_id: UUID string, made from the image's content.
        score: The joint encoder's logit; higher is better. Comparable within one query. None where
            the image was not scored.
        rank: Place in the result, from 1; pages count on.
        retrieval_score: The first stage's cosine (no cosine after `recommend` with `best_score`).
        retrieval_rank: Place among the candidates of the first stage, from 1.
        payload: What was stored with the image (`path` and the user's fields).
        probability: That text and image match; None where the model holds no calibration.
        fusion_score: What ranked the image, where the stages' scores were put together.
        group: Value of the field that groups images, where one does and the image has it.
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
class SearchResult(Sequence[SearchHit]):
    """Hold the answer to one query: a sequence of hits, best first.

    The ranking goes on where the hits end: `next` and `cursor` give further pages of it. It is made
    of the candidates of one search, so pages never repeat an image, nor leave one out.

    Attributes:
        query: The text as asked; for an image, its path.
        hits: Best first.
        timings: Milliseconds by stage.
        degraded: Whether the ranking is less than was asked for.
        reason: Why, when it is.
        candidates: Images that the first stage found.
        scored: Those of them that the joint encoder scored.
        remaining: What ranks behind the hits, best first.
        group_by: The field that groups images, where one does.
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
            raise ConfigError(f"count is {count!r}; ask for 1 image or more")
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
