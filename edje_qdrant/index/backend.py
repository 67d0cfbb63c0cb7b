"""The interface that every vector engine implements below `VectorIndex`."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import ConfigError, EdjeError
from edje_qdrant.index.filters.filter import Filter
from edje_qdrant.index.newest import NewestPage
from edje_qdrant.index.validate import CheckedPayload, CheckedPoint
from edje_qdrant.index.words import WORDS_VECTOR, WordVector
from edje_qdrant.types import Payload, Point

__all__ = [
    "NO_VECTOR", "Backend", "Found", "FusedHit", "Hit", "Hits", "Record", "as_points",
    "fused_hits", "word_vectors",
]  # fmt: skip


class Hit(Protocol):
    """A point found for a query, as an engine returns it.

    An engine may convert an attribute each time it is read; payloads have no token bytes.
    """

    @property
    def id(self) -> Any: ...
    @property
    def score(self) -> float: ...
    @property
    def payload(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Found:
    """A `Hit` of engines that return none of their own."""

    id: str
    score: float
    payload: Payload = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FusedHit:
    """A `Hit` found by its embedding, by its words, or by both.

    Attributes:
        id: Its id.
        score: Cosine of the embeddings, also where only the words were found.
        fused: Reciprocal ranks of both searches, added up; higher is better.
        words: BM25 score of the query's words; 0 if the point has none of them.
        payload: Without token bytes.
    """

    id: Any
    score: float
    fused: float
    words: float
    payload: Any


#: Points found for one query, in any order.
Hits: TypeAlias = Iterable[Hit]

#: The vector of a point whose vector was not asked for.
NO_VECTOR: NDArray[np.float32] = np.empty(0, np.float32)


class Record(Protocol):
    """A point as Qdrant's clients return it."""

    @property
    def id(self) -> Any: ...
    @property
    def vector(self) -> Any: ...
    @property
    def payload(self) -> Any: ...


def as_points(records: Iterable[Record], *, vectors: bool) -> list[Point]:
    """Convert records to points; `vectors` says whether the records have vectors."""
    return [
        Point(
            str(record.id),
            np.array(_embedding(record.vector), np.float32) if vectors else NO_VECTOR,
            record.payload or {},
        )
        for record in records
    ]


def _embedding(vector: Any) -> Any:
    """Return the embedding of a point, which may have words beside it."""
    return vector[""] if isinstance(vector, Mapping) else vector


def word_vectors(records: Iterable[Record]) -> dict[str, WordVector]:
    """Return id -> words of records that were read with their words."""
    found: dict[str, WordVector] = {}
    for record in records:
        given = record.vector.get(WORDS_VECTOR) if isinstance(record.vector, Mapping) else None
        if given is not None:
            found[str(record.id)] = WordVector([*given.indices], [*given.values])
    return found


def fused_hits(
    answers: Sequence[Hits],
    queries: NDArray[np.float32],
    vectors_of: Callable[[Sequence[str]], Iterable[Point]],
) -> list[list[FusedHit]]:
    """Join the three answers to each query by embedding and words.

    Args:
        answers: For each query: what the fused search found, with the scores of the fusion; the
            same points with their cosines, where one that was written in between, or tied at the
            end, may be missing; and those that have some of its words, with their BM25 scores.
        queries: `(q, d)` embeddings of the queries, unit length.
        vectors_of: Reads points with vectors.
    """
    return [
        _joined(fused, cosines, words, query, vectors_of)
        for fused, cosines, words, query in zip(
            answers[::3], answers[1::3], answers[2::3], queries, strict=True
        )
    ]


def _joined(
    fused: Hits,
    cosines: Hits,
    words: Hits,
    query: NDArray[np.float32],
    vectors_of: Callable[[Sequence[str]], Iterable[Point]],
) -> list[FusedHit]:
    found = [*fused]
    known = {str(hit.id): hit.score for hit in cosines}
    missing = [str(hit.id) for hit in found if str(hit.id) not in known]
    if missing:
        known.update({p.id: float(p.vector @ query) for p in vectors_of(missing)})
    matched = {str(hit.id): hit.score for hit in words}
    return [
        FusedHit(hit.id, known[str(hit.id)], hit.score, matched.get(str(hit.id), 0.0), hit.payload)
        for hit in found
        if str(hit.id) in known  # unless it was deleted since
    ]


class Backend(ABC):
    """One vector engine. `VectorIndex` has checked every argument before it arrives here.

    Every method but `close` raises StoreError once the backend is closed.

    Attributes:
        name: Name of the engine.
        dim: Width of the vectors.
        batch_size: Points to write in one call, at most.
        metadata: The metadata as last read or written.
    """

    name: str
    dim: int
    batch_size: int
    metadata: dict[str, Any]

    read_only: bool = False

    #: Whether other processes may write to the collection, or replace it, while it is open.
    shared: bool = False

    #: The collection's name on the server, where an alias may have been given; None for a folder.
    resolved_name: str | None = None

    @abstractmethod
    def check_open(self) -> None:
        """Raise StoreError if the backend is closed."""

    def check_writable(self) -> None:
        """Raise StoreError if the backend is closed, or may only read."""
        self.check_open()

    def patient(self, seconds: float) -> AbstractContextManager[None]:  # noqa: ARG002 - for servers
        """Let the calls inside wait for a server that is away; see `VectorIndex`."""
        return nullcontext()

    def give_up(self) -> None:  # noqa: B027 - nothing to end but for servers
        """End the waiting of every thread inside `patient`."""

    def limit(
        self,
        queries: int,  # noqa: ARG002 - for servers
        left: Callable[[], float] | None = None,  # noqa: ARG002 - for servers
    ) -> AbstractContextManager[Any]:
        """Limit the time of the calls inside; see `VectorIndex`."""
        return nullcontext()

    def probe(self, *, points: bool) -> dict[str, Any]:  # noqa: ARG002 - for servers
        """Check that the collection can be read, and return its metadata; see `VectorIndex`."""
        self.count(None)
        return self.metadata

    def give_up_when(self, away: threading.Event, failed: Callable[[], None]) -> None:  # noqa: B027 - for servers
        """Do not wait for a server while an event is set; see `VectorIndex.give_up_when`."""

    @abstractmethod
    def set_metadata(self, metadata: dict[str, Any]) -> None:
        """Replace the metadata atomically."""

    @abstractmethod
    def reload_metadata(self) -> None:
        """Read the metadata again."""

    def named_now(self, name: str) -> tuple[str, dict[str, Any]]:
        """Return the collection that a name stands for now, and its metadata; for servers only.

        Raises:
            ConfigError: A folder has no aliases.
        """
        raise ConfigError(f"{name!r} is a collection in a folder, which has no aliases")

    @abstractmethod
    def translate(self, filter: Filter | None, timeout: float | None = None) -> Any:
        """Check a filter and return it in the engine's form; None for every point.

        Args:
            filter: The filter.
            timeout: Seconds after which a server is not asked again what it makes of the filter.

        Raises:
            ConfigError: The filter cannot be used.
        """

    def without(self, chosen: Any, others: Collection[str]) -> Any:  # noqa: ARG002 - there are none
        """Return a translated filter that also leaves out points of other programs.

        Args:
            chosen: A translated filter.
            others: Ids of those that are known.
        """
        return chosen

    @abstractmethod
    def nearest(
        self, queries: NDArray[np.float32], wanted: int, chosen: Any, timeout: float | None
    ) -> list[Hits]:
        """Find the `wanted` nearest of the chosen points for each of `(q, d)` unit vectors."""

    async def nearest_async(
        self, queries: NDArray[np.float32], wanted: int, chosen: Any, timeout: float | None
    ) -> list[Hits]:
        """Do the same without blocking the event loop."""
        return await asyncio.to_thread(self.nearest, queries, wanted, chosen, timeout)

    def nearest_or_words(
        self,
        queries: NDArray[np.float32],  # noqa: ARG002 - all for engines with sparse vectors
        words: Sequence[WordVector],  # noqa: ARG002
        weight: float,  # noqa: ARG002
        wanted: int,  # noqa: ARG002
        chosen: Any,  # noqa: ARG002
        timeout: float | None,  # noqa: ARG002
    ) -> list[list[FusedHit]]:
        """Find the `wanted` best of the chosen points by embeddings and words together.

        Args:
            queries: `(q, d)` unit vectors.
            words: `q` queries' words, of which none is empty.
            weight: How much a rank among the words counts, next to one among the embeddings.
            wanted: Points for each query.
            chosen: A translated filter.
            timeout: As in `nearest`.
        """
        raise self._no_words()

    async def nearest_or_words_async(
        self,
        queries: NDArray[np.float32],
        words: Sequence[WordVector],
        weight: float,
        wanted: int,
        chosen: Any,
        timeout: float | None,
    ) -> list[list[FusedHit]]:
        """Do the same without blocking the event loop."""
        return await asyncio.to_thread(
            self.nearest_or_words, queries, words, weight, wanted, chosen, timeout
        )

    def create_words(self) -> None:
        """Make room for the words of points in an index without; else this does nothing.

        Raises:
            ConfigError: The engine, or a server of this version, cannot.
        """
        raise self._no_words()

    def check_drops_words(self) -> None:  # noqa: B027 - as `drop_words`
        """Check that words can be dropped; an engine without words has none to drop.

        Raises:
            ConfigError: A server of this version cannot.
        """

    def drop_words(self) -> None:  # noqa: B027 - an engine without words has nothing to do
        """Delete the words of all points, and the room for them."""

    def set_words(self, words: Mapping[str, WordVector]) -> None:  # noqa: ARG002
        """Replace the words of stored points, id -> words; no other id may be given."""
        raise self._no_words()

    def fetch_words(self, ids: Sequence[str]) -> dict[str, WordVector]:  # noqa: ARG002
        """Read the words of points, id -> words; points without are left out."""
        raise self._no_words()

    @classmethod
    def _no_words(cls) -> ConfigError:
        return ConfigError(
            f"the engine {cls.name} keeps no words, and text_fields need them; keep the collection "
            "in a folder with the engine edge, or on a Qdrant server (edje-qdrant copy)"
        )

    @abstractmethod
    def best_score(
        self,
        positive: NDArray[np.float32],
        negative: NDArray[np.float32],
        wanted: int,
        chosen: Any,
    ) -> Hits:
        """Find points by Qdrant's `best_score` for `(p, d)` and `(n, d)` example vectors."""

    @abstractmethod
    def fetch(
        self,
        ids: Sequence[str],
        *,
        payload: bool = False,
        tokens: bool = False,
        vectors: bool = False,
    ) -> Iterable[Point]:
        """Read points by id; unknown ids are left out."""

    @abstractmethod
    def page(
        self, start: Any, size: int, chosen: Any, *, payload: bool, tokens: bool, vectors: bool
    ) -> tuple[list[Point], Any]:
        """Read up to `size` of the chosen points in order of id.

        Args:
            start: Where to start: None, or what the previous call returned.
            size: Points to read, at most.
            chosen: A translated filter.
            payload: Whether to read payloads.
            tokens: Whether payloads include token bytes.
            vectors: Whether to read vectors.

        Returns:
            The points, and where the next page starts; None after the last page.
        """

    def orders(self, path: str) -> bool:
        """Return whether points can be read in the order of the dates in a field."""
        return self.payload_indexes().get(path) == "datetime"

    @abstractmethod
    def newest(
        self, fields: Sequence[str], start: Any, size: int, filter: Filter | None
    ) -> NewestPage:
        """Read a page by the first of several fields with a date; see `VectorIndex.newest`."""

    @abstractmethod
    def write(self, points: Sequence[CheckedPoint]) -> None:
        """Write points, replacing those with the same id."""

    def insert(self, points: Sequence[CheckedPoint]) -> None:
        """Write points that are not stored; the caller has looked, and a folder is locked."""
        self.write(points)

    @abstractmethod
    def update(self, points: Sequence[CheckedPoint]) -> None:
        """Write points that are stored, each whole; those with unknown ids are left out."""

    @abstractmethod
    def set_payload(self, payloads: Sequence[CheckedPayload]) -> None:
        """Set top-level payload keys; unknown ids are ignored."""

    @abstractmethod
    def remove_keys(self, ids: Sequence[str], paths: Sequence[str]) -> None:
        """Remove top-level payload keys, given as paths; unknown ids and keys are ignored."""

    @abstractmethod
    def delete(self, ids: Sequence[str]) -> None:
        """Delete points; unknown ids are ignored. Digits alone are an id that is an integer."""

    @abstractmethod
    def delete_matching(self, chosen: Any) -> None:
        """Delete the chosen points; never called with None."""

    @abstractmethod
    def count(self, chosen: Any) -> int:
        """Count the chosen points exactly."""

    @abstractmethod
    def create_payload_index(self, path: str, kind: str) -> None:
        """Index a payload field, where the engine has such indexes."""

    @abstractmethod
    def payload_indexes(self) -> dict[str, str]:
        """Return field path -> kind of every payload index."""

    def facet(self, path: str, limit: int) -> list[tuple[Any, int]] | None:  # noqa: ARG002
        """Return the most frequent values of a field and how many points have each.

        None where the engine cannot count them, for one without an index of the field.
        """
        self.check_open()
        return None

    def flush(self) -> None:
        """Make every write survive a killed process."""
        self.check_open()

    def optimize(self) -> None:
        """Build the search graph where the engine does so on request."""
        self.check_open()

    def sign(self, ids: Sequence[str], keys: Mapping[str, str]) -> None:
        """Set keys inside the reserved key of stored points' payloads; for servers only.

        Raises:
            ConfigError: A folder is locked, so that nothing has to be told to other processes.
        """
        raise ConfigError(f"{self.name} signs no points ({len(ids)} given, {[*keys]})")

    @abstractmethod
    def remove(self) -> None:
        """Delete the whole index, and close it."""

    @abstractmethod
    def close(self, because: Callable[[], EdjeError] | None = None) -> None:
        """Flush and release files and connections; a second call does nothing.

        Args:
            because: Returns what later calls raise; by default that the index is closed.
        """
