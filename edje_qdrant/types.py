"""Data classes that several packages use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import without_keys

__all__ = [
    "Candidate",
    "Candidates",
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
    """Hold the encodings of `n` images.

    Attributes:
        embeddings: `(n, d)` float32, unit length, for the first stage.
        tokens: `(n, m, d_text)` float16, for the joint encoder.
    """

    embeddings: NDArray[np.float32]
    tokens: NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.embeddings)

    def __repr__(self) -> str:
        embeddings, tokens = np.shape(self.embeddings), np.shape(self.tokens)
        return f"ImageEncoding(embeddings={embeddings}, tokens={tokens})"


@dataclass(frozen=True, slots=True)
class Point:
    """Hold one image as the vector engine stores it.

    Attributes:
        id: UUID string.
        vector: `(d,)` float32, unit length.
        payload: JSON object; the token reference is under the reserved key `_edje`.
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
        rank: Rank in the first stage, from 1.
        payload: As stored, `_edje` included (without token bytes).
        words: BM25 score of the words of the text in the image's text fields; 0 if they were not
            searched for.
    """

    image_id: str
    score: float
    rank: int
    payload: Payload
    words: float = 0.0


class Candidates(Sequence[Candidate]):
    """Hold the candidates of one query, best first; each is made when it is first used.

    An engine's ids and payloads are objects of its own. Converting them takes about as long as the
    search, and not all of them are used.

    Args:
        scores: Cosine of each of `n` candidates, descending unless words were searched for, too.
        point: Returns id and payload of the candidate at a place from 0.
        token_keys: A text for each candidate that identifies its tokens, if it is known without
            the payloads.
        absent: Reads the payloads, and returns the places of candidates that were deleted since
            they were found; for candidates that are found without their payloads.
        words: BM25 score of each candidate; None if words were not searched for.
    """

    __slots__ = ("_absent", "_made", "_point", "scores", "token_keys", "words")

    def __init__(
        self,
        scores: Sequence[float],
        point: Callable[[int], tuple[str, Payload]],
        *,
        token_keys: Sequence[str] | None = None,
        absent: Callable[[], Collection[int]] = tuple,
        words: Sequence[float] | None = None,
    ) -> None:
        self.scores, self.token_keys, self.words = scores, token_keys, words
        self._point, self._absent = point, absent
        self._made: list[Candidate | None] = [None] * len(scores)

    def absent(self) -> Collection[int]:
        """Return the places of candidates that were deleted since they were found.

        This reads all payloads, unless they were read before. The best time for it is while a
        device scores the candidates.
        """
        return self._absent()

    def __len__(self) -> int:
        return len(self.scores)

    @overload
    def __getitem__(self, index: int) -> Candidate: ...
    @overload
    def __getitem__(self, index: slice) -> list[Candidate]: ...
    def __getitem__(self, index: int | slice) -> Candidate | list[Candidate]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        made = self._made[index]
        if made is None:
            at = index if index >= 0 else index + len(self)
            image_id, payload = self._point(at)
            words = 0.0 if self.words is None else self.words[at]
            made = self._made[at] = Candidate(image_id, self.scores[at], at + 1, payload, words)
        return made

    def __iter__(self) -> Iterator[Candidate]:
        return (self[at] for at in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Candidates | list | tuple):
            return NotImplemented
        return [*self] == [*other]

    __hash__ = None  # type: ignore[assignment]  # like a list

    def __reduce__(self) -> tuple[Any, ...]:
        return list, ([*self],)  # an engine's objects cannot be copied or pickled

    def __repr__(self) -> str:
        return f"Candidates({[*self]!r})"


@dataclass(frozen=True, slots=True)
class Timings:
    """Hold the wall-clock milliseconds of each stage of one search.

    In a batch, the time of stages that ran for all queries at once is divided evenly.
    """

    encode: float
    retrieve: float
    fetch: float
    rerank: float

    @property
    def total(self) -> float:
        """Return the sum of all stages, in ms."""
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
    """Hold an image that was not ingested, and the reason."""

    path: str
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", without_keys(self.reason))


@dataclass(frozen=True, slots=True)
class IngestReport:
    """Report one ingest.

    Attributes:
        added: Number of images added to the collection.
        skipped: Number of images that existed already (same content, or twice in the source), and
            stayed as they were: `known` and `twice` together.
        failed: Images that could not be read, each with the reason.
        seconds: Wall-clock time in total.
        pruned: Number of images deleted because the source no longer contains them.
        updated: Number of images that existed already and whose fields were changed.
        twice: Number of files whose content an earlier file of the source has, too.
        left_out: What a folder holds beside images, and how often: kind -> number, such as
            `{"video (.mov)": 2, "hidden file": 1}`.
        old_versions: Number of stored images at whose paths this ingest added other images,
            because the files were edited since; they stay in the collection without `prune`.
        kept_elsewhere: Number of images that are gone from the source and were not pruned, as
            another ingest found a copy elsewhere; their `path` is that of the copy now.
    """

    added: int
    skipped: int
    failed: tuple[FailedImage, ...] = field(default=())
    seconds: float = 0.0
    pruned: int = 0
    updated: int = 0
    twice: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    old_versions: int = 0
    kept_elsewhere: int = 0

    @property
    def known(self) -> int:
        """Return the number of images that were in the collection before, and stayed as is."""
        return self.skipped - self.twice

    @property
    def images_per_second(self) -> float:
        """Return the number of images added per second."""
        return self.added / self.seconds if self.seconds > 0 else 0.0

    @property
    def failed_by_reason(self) -> dict[str, int]:
        """Return how many images failed for each reason, the most frequent first."""
        return dict(Counter(failure.reason for failure in self.failed).most_common())
