"""Stage 1: the vector index, the same for every engine."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import ConfigError, EdjeError, StoreError
from edje_qdrant.index.backend import Backend, FusedHit, Hit, Hits
from edje_qdrant.index.batches import in_batches
from edje_qdrant.index.filters.filter import Filter, require_filter
from edje_qdrant.index.newest import NewestPage
from edje_qdrant.index.payload_indexes import PayloadKind, check_field, check_kind
from edje_qdrant.index.ranking import SLACK, rank, rank_fused
from edje_qdrant.index.recommend import Strategy, average, check_examples, example_vectors
from edje_qdrant.index.validate import (
    CheckedPoint,
    check_batch_size,
    check_ids,
    check_keys,
    check_limit,
    check_metadata,
    check_payloads,
    check_points,
    check_vectors,
)
from edje_qdrant.index.words import WORDS_KEY, ByWords, TextFields, WordVector
from edje_qdrant.types import Candidates, Payload, Point

__all__ = ["Keep", "Observer", "VectorIndex"]

#: Returns whether a point with an id and a payload is to be found.
Keep: TypeAlias = Callable[[str, Payload], bool]

#: Told the ids of points that were written or deleted; None if it is not known which.
Observer: TypeAlias = Callable[["Sequence[str] | None"], None]


# Searches for one request, at most. The second leaves out the points of other programs; more are
# needed only if some of these can be left out by their ids alone, and others are found instead.
_SEARCHES = 4


@dataclass(frozen=True, slots=True)
class _Asked:
    """The words of some queries.

    Attributes:
        rows: Which queries have words.
        words: Their words.
        weight: How much a rank among the words counts, next to one among the embeddings.
    """

    rows: list[int] = field(default_factory=list)
    words: list[WordVector] = field(default_factory=list)
    weight: float = 1.0

    def plain(self, count: int) -> list[int]:
        """Return which of `count` queries have no words."""
        return sorted({*range(count)} - {*self.rows})

    def joined(self, by_words: Sequence[Hits], rest: Sequence[Hits]) -> list[Hits]:
        """Return the hits of all queries in order, given those with words and the others."""
        count = len(by_words) + len(rest)
        found = dict(zip([*self.rows, *self.plain(count)], [*by_words, *rest], strict=True))
        return [found[row] for row in range(count)]

    def ranked(self, found: Sequence[Hits], limit: int) -> list[Candidates]:
        """Rank the hits of all queries."""
        fused = {*self.rows}
        return [
            rank_fused(cast("Iterable[FusedHit]", hits), limit)
            if row in fused
            else rank(hits, limit)
            for row, hits in enumerate(found)
        ]


class VectorIndex:
    """Store one vector and one payload for each image, and find the nearest by cosine.

    Checks arguments, ranks and pages; the backend talks to the engine. Threads may share an index.
    Every method raises ConfigError for arguments that cannot be used, before anything is written.
    Every method but `close` raises StoreError once the index is closed or where the engine fails,
    and EngineUnavailableError where a server cannot be reached.

    Make one with `create_embedded`, `open_embedded`, `create_on_server` or `open_on_server`.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._observers: list[Observer] = []
        self._allow: Callable[[], None] | None = None
        self._others: frozenset[str] = frozenset()  # points of other programs that were found
        self._leave_out = False  # whether the engine is told to leave them out

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Report every write of this object to a function, also writes that failed part-way.

        Args:
            observer: Called after each write with the ids concerned, in the writing thread; with
                None if some points were deleted and their ids are not known.

        Returns:
            A function that ends the reports.
        """
        self._observers.append(observer)

        def end() -> None:
            if observer in self._observers:
                self._observers.remove(observer)

        return end

    def check_before_writes(self, check: Callable[[], None]) -> None:
        """Call a function before each request that writes points, which it can prevent by an error.

        Only where other processes may write too: a folder is locked while it is open.

        Args:
            check: Raises an error if the collection is another one now.
        """
        if self._backend.shared:
            self._allow = check

    def _check_before_write(self) -> None:
        if self._allow is not None:
            self._allow()

    @contextmanager
    def _reported(self, image_ids: Sequence[str] | None) -> Iterator[None]:
        try:
            yield
        finally:
            for observer in [*self._observers]:
                observer(image_ids)

    @property
    def engine(self) -> str:
        """Return the engine's name: `edge`, `faiss` or `qdrant`."""
        return self._backend.name

    @property
    def shared(self) -> bool:
        """Return whether other processes may write to the collection while it is open."""
        return self._backend.shared

    @property
    def resolved_name(self) -> str | None:
        """Return the name of the server's collection, also if an alias was given; None else."""
        return self._backend.resolved_name

    @property
    def read_only(self) -> bool:
        """Return whether this user may not write to the index's folder; then writes raise."""
        return self._backend.read_only

    def require_open(self) -> None:
        """Check that the index is open.

        Raises:
            StoreError: It is closed.
        """
        self._backend.check_open()

    def require_writable(self) -> None:
        """Check that the index can be written to.

        Raises:
            StoreError: It is closed, or open read-only.
        """
        self._backend.check_writable()

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Return the JSON object given at create, or to `set_metadata` since."""
        return self._backend.metadata

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Replace the metadata atomically: readers see the old or the new, never a mix.

        Raises:
            StoreError: It cannot be written (the old is kept), or a server returns something else.
        """
        checked = check_metadata(metadata)
        self._backend.check_writable()
        self._backend.set_metadata(checked)

    def reload_metadata(self) -> Mapping[str, Any]:
        """Read the metadata again, as another process may have replaced it, and return it."""
        self._backend.reload_metadata()
        return self._backend.metadata

    def named_now(self, name: str) -> tuple[str, Mapping[str, Any]]:
        """Return the collection that a name on the server stands for now, and its metadata.

        Sends two short requests, which are not repeated.

        Raises:
            ConfigError: The index is in a folder.
            CollectionNotFoundError: It stands for none.
            EngineUnavailableError: No answer within two seconds.
        """
        self._backend.check_open()
        return self._backend.named_now(name)

    @property
    def text_fields(self) -> TextFields | None:
        """Return which payload fields hold text; None in an index without words.

        Raises:
            StoreError: What is recorded about them cannot be read.
        """
        return TextFields.read(self._backend.metadata)

    def upsert(self, points: Sequence[Point]) -> None:
        """Write points, replacing those with the same id; visible to searches on return.

        Raises:
            StoreError: The disk is full or the engine failed; earlier batches may be written.
        """
        self._write(points, self._backend.write)

    def insert(self, points: Sequence[Point]) -> None:
        """Write points that are not stored yet, as `upsert` does.

        A point that another process has written since the caller looked stays as it is, on servers
        from Qdrant 1.17 on; an older server replaces it.
        """
        self._write(points, self._backend.insert)

    def update(self, points: Sequence[Point]) -> None:
        """Write points that are still stored, each whole; those deleted since are left out.

        On servers before Qdrant 1.17 they are looked up first, and one that another process deletes
        in the milliseconds until the write is written again.
        """
        self._write(points, self._backend.update)

    def _write(
        self, points: Sequence[Point], write: Callable[[Sequence[CheckedPoint]], None]
    ) -> None:
        checked = check_points(points, self._backend.dim)
        self._backend.check_writable()
        with self._reported([point.id for point in checked]):
            for batch in in_batches(checked, self._backend.batch_size):
                self._check_before_write()
                write(self._with_words(batch))

    def set_payload(self, payloads: Mapping[str, Payload]) -> None:
        """Set keys of stored payloads, id -> key -> value; visible to searches on return.

        A key's value is replaced whole, however deep it is; other keys and the vector stay as
        they are. Unknown ids are ignored. A value of None at the top is refused.
        """
        checked = check_payloads(payloads)
        self._backend.check_writable()
        with self._reported([item.id for item in checked]):
            for batch in in_batches(checked, self._backend.batch_size):
                self._check_before_write()
                self._set_words({item.id: item.payload for item in batch})
                self._backend.set_payload(batch)

    def remove_payload_keys(self, image_ids: Sequence[str], keys: Sequence[str]) -> None:
        """Remove top-level keys from stored payloads; unknown ids and keys are ignored.

        A dot is part of the key's name here.
        """
        ids, paths = check_ids(image_ids), check_keys(keys)
        self._backend.check_writable()
        if ids and paths:
            with self._reported(ids):
                self._check_before_write()
                self._set_words(dict.fromkeys(ids, dict.fromkeys(keys)))
                self._backend.remove_keys(ids, paths)

    def _with_words(self, points: list[CheckedPoint]) -> list[CheckedPoint]:
        """Return points to write, with the words of their payloads in an index of words."""
        fields = self.text_fields
        if fields is None:
            return points
        return [replace(point, words=fields.words_of(point.payload)) for point in points]

    def _set_words(self, changes: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the words that points will have, before their payloads change.

        In this order, one who was killed in between finds the old payload, changes it once more,
        and with it the words.

        Args:
            changes: Id -> what to set in its payload; None removes a key.
        """
        fields = self.text_fields
        if fields is None:
            return
        concerned = [each for each, payload in changes.items() if fields.concern(payload)]
        if not concerned:
            return
        words: dict[str, WordVector] = {}
        for point in self._backend.fetch(concerned, payload=True):
            words[point.id] = fields.words_of({**point.payload, **changes[point.id]})
        self._put_words(words)

    def _put_words(self, words: Mapping[str, WordVector]) -> None:
        """Replace the words of points, id -> words; those of points deleted since are left out."""
        while words:
            try:
                self._backend.set_words(words)
            except (ConfigError, StoreError):  # noqa: PERF203 - again without those that are gone
                # The engines refuse all words if one of the points is not there.
                stored = self.existing([*words])
                if len(stored) == len(words):
                    raise
                words = {each: own for each, own in words.items() if each in stored}
            else:
                return

    def begin_words(self, fields: TextFields) -> None:
        """Record the fields with text, and make room for the words; those of points are not there.

        Every write from then on keeps them; `set_words` writes those of other points. The recorded
        fields are then marked as complete with `set_metadata`.

        Args:
            fields: The fields.

        Raises:
            ConfigError: The engine, or a server of this version, keeps no words.
            StoreError: The index cannot be written.
        """
        self._backend.check_writable()
        self._check_before_write()
        self._backend.create_words()
        self.set_metadata({**self.metadata, WORDS_KEY: fields.as_metadata()})

    def check_drops_words(self) -> None:
        """Check that words can be dropped.

        Raises:
            ConfigError: A server of this version cannot.
        """
        self._backend.check_writable()
        self._check_before_write()
        self._backend.check_drops_words()

    def drop_words(self) -> None:
        """Delete the words of all points.

        Before that, the fields with text are removed from the metadata, so that no write keeps
        words any more.

        Raises:
            StoreError: The index cannot be written.
        """
        self._backend.check_writable()
        self._backend.drop_words()

    def set_words(self, words: Mapping[str, WordVector]) -> None:
        """Replace the words of stored points, id -> words; unknown ids are ignored."""
        check_ids([*words])
        self._backend.check_writable()
        if words:
            self._check_before_write()
            self._put_words(words)

    def words(self, image_ids: Sequence[str]) -> dict[str, WordVector]:
        """Return id -> words as they are stored; points without are left out."""
        return self._backend.fetch_words(check_ids(image_ids))

    def patient(self, seconds: float) -> AbstractContextManager[None]:
        """Let the calls inside, from any thread, wait for a server that is away.

        A line on stderr says when waiting begins, and when it ends. Calls inside a `limit` do not
        wait.

        Args:
            seconds: To wait at most, from the first failure until the next answer.
        """
        return self._backend.patient(seconds)

    def give_up(self) -> None:
        """End the waiting of every thread inside `patient`, as the job has ended."""
        self._backend.give_up()

    def limit(
        self, queries: int = 1, left: Callable[[], float] | None = None
    ) -> AbstractContextManager[Any]:
        """Limit the time of the calls to a server inside to its `timeout`, all together.

        It can be entered several times and goes on counting. Only the time in calls counts, with
        their retries and pauses.

        Args:
            queries: Searches that share the calls. An answer may take this many times as long; a
                server that does not answer is not waited for longer.
            left: Returns the seconds left of a budget.
        """
        return self._backend.limit(queries, left)

    def probe(self, *, points: bool = False) -> dict[str, Any]:
        """Check that the collection can be read, by a short request that is not repeated.

        A server is asked over a connection of its own, so that requests without an answer do not
        hold this one up, and has 2 seconds to answer; to resolve its name may take longer.

        Args:
            points: Whether to read points, too, which a server's limit of reads counts. With a node
                of a cluster away, a server may know the collection and not reach its points.

        Returns:
            The metadata; a server is asked for it.

        Raises:
            EngineUnavailableError: No answer.
            CollectionNotFoundError: There is no such collection any more.
            ConfigError: The server refuses the key.
            StoreError: The collection is closed or cannot be read.
        """
        return self._backend.probe(points=points)

    def give_up_when(self, away: threading.Event, failed: Callable[[], None]) -> None:
        """Do not wait for a server, nor repeat a request to it, while an event is set.

        The caller sets it when probes say that the server is away, so that threads that wait for it
        are free for what comes when it is back. `probe` is not concerned.

        Args:
            away: The event.
            failed: Called when a request had no answer, from the thread that sent it, before it is
                repeated: the time to probe.
        """
        self._backend.give_up_when(away, failed)

    def flush(self) -> None:
        """Make every write so far survive a killed process.

        On Edge, a power cut may still lose writes. On faiss and on a server every write has
        survived both by the time it returns.
        """
        self._backend.flush()

    def optimize(self) -> None:
        """Build the search graph where the engine does so on request.

        Edge merges its segments and builds a graph from 100 MB of vectors on; points written later
        are scanned until the next call. faiss frees the memory of deleted vectors. A server
        optimizes in the background.

        Raises:
            StoreError: The disk has no room for a second copy of what is merged.
        """
        self._backend.check_writable()
        self._backend.optimize()

    def existing(self, image_ids: Sequence[str]) -> set[str]:
        """Return those of the ids that are stored."""
        return {point.id for point in self._backend.fetch(check_ids(image_ids))}

    def nearest(
        self,
        vectors: NDArray[np.float32],
        limit: int,
        *,
        filter: Filter | None = None,
        timeout: float | None = None,
        keep: Keep | None = None,
        words: ByWords | None = None,
    ) -> list[Candidates]:
        """Find the nearest points of each of `(q, d)` vectors, best first, `limit` at most.

        Args:
            vectors: `(q, d)` query vectors of any length above 0.
            limit: Points to find for each query.
            filter: Which points to search; None or `{}` for all. A filter on a field without an
                index (see `create_payload_index`) reads every payload.
            timeout: Seconds for a server, retries and pauses included; at most the `timeout` with
                which it was opened. An embedded engine cannot be interrupted.
            keep: Which points to return, where other programs can write too; the others count as
                not there. If they take the place of points to keep, the engine is searched again
                without them, and told so from then on.
            words: Words to search for beside the vectors. The order is then that of the ranks in
                both searches; scores are cosines all the same.
        """
        began = time.monotonic()
        asked = self._asked(words)

        def found() -> list[Hits]:
            left = None if timeout is None else max(0.0, began + timeout - time.monotonic())
            others, wanted = self._without(chosen, keep), limit + SLACK
            if not asked.rows:
                return self._backend.nearest(queries, wanted, others, left)
            by_words = self._backend.nearest_or_words(
                queries[asked.rows], asked.words, asked.weight, wanted, others, left
            )
            plain = asked.plain(len(queries))
            if not plain:
                return [*by_words]
            return asked.joined(
                by_words, self._backend.nearest(queries[plain], wanted, others, left)
            )

        with self._backend.limit(_rows(vectors)):
            queries, chosen = self._checked(vectors, limit, filter, timeout)
            for _ in range(_SEARCHES):
                own, is_whole = self._kept(found(), keep, limit + SLACK, limit)
                if is_whole:
                    break
        return asked.ranked(own, limit)

    async def nearest_async(
        self,
        vectors: NDArray[np.float32],
        limit: int,
        *,
        filter: Filter | None = None,
        timeout: float | None = None,
        keep: Keep | None = None,
        words: ByWords | None = None,
    ) -> list[Candidates]:
        """Do as `nearest` does without blocking the event loop.

        A server is asked through `AsyncQdrantClient`; an embedded engine works in another thread.
        """
        began = time.monotonic()
        asked = self._asked(words)

        async def found() -> list[Hits]:
            left = None if timeout is None else max(0.0, began + timeout - time.monotonic())
            others, wanted = self._without(chosen, keep), limit + SLACK
            if not asked.rows:
                return await self._backend.nearest_async(queries, wanted, others, left)
            by_words = await self._backend.nearest_or_words_async(
                queries[asked.rows], asked.words, asked.weight, wanted, others, left
            )
            plain = asked.plain(len(queries))
            if not plain:
                return [*by_words]
            rest = await self._backend.nearest_async(queries[plain], wanted, others, left)
            return asked.joined(by_words, rest)

        with self._backend.limit(_rows(vectors)):
            if filter is None:
                queries, chosen = self._checked(vectors, limit, filter, timeout)
            else:  # a server may have to be asked for its version and its indexes
                queries, chosen = await asyncio.to_thread(
                    self._checked, vectors, limit, filter, timeout
                )
            for _ in range(_SEARCHES):
                own, is_whole = self._kept(await found(), keep, limit + SLACK, limit)
                if is_whole:
                    break
        return asked.ranked(own, limit)

    def require_words(self) -> TextFields:
        """Return the text fields of an index in which every point has its words.

        Raises:
            ConfigError: It has none, or their words are not complete.
        """
        fields = self.text_fields
        if fields is None:
            raise ConfigError(
                "the collection has no text fields, so it cannot be searched by words; name some "
                "with `edje-qdrant text-fields caption,path`, or leave hybrid out"
            )
        if not fields.filled:
            raise ConfigError(
                "the words of the collection are not complete, as the command that adds them was "
                "interrupted or is still running; run it again: `edje-qdrant text-fields "
                f"{','.join(fields.fields)}`"
            )
        return fields

    def _asked(self, words: ByWords | None) -> _Asked:
        """Return the words of queries; raises as `require_words`."""
        if words is None:
            return _Asked()
        fields = self.require_words()
        vectors = [fields.query(text) for text in words.texts]
        rows = [row for row, vector in enumerate(vectors) if len(vector)]
        return _Asked(rows, [vectors[row] for row in rows], words.weight)

    def recommend(
        self,
        positive_ids: Sequence[str],
        negative_ids: Sequence[str],
        limit: int,
        *,
        filter: Filter | None = None,
        strategy: Strategy = "average_vector",
        keep: Keep | None = None,
    ) -> Candidates:
        """Find points like some stored ones and unlike others, best first, `limit` at most.

        The examples themselves are excluded. With `best_score` the candidates' scores are not
        cosines: the engine computes them, and only their order has a meaning.

        Args:
            positive_ids: Points to come near to; `best_score` works without.
            negative_ids: Points to keep away from; may be empty.
            limit: Points to find.
            filter: Which points to search; None or `{}` for all.
            strategy: How examples are combined.
            keep: Which points to return; see `nearest`.
        """
        check_limit(limit)
        ids = check_examples(positive_ids, negative_ids, strategy)
        examples = {*ids.positive, *ids.negative}
        with self._backend.limit(1):
            chosen = self._backend.translate(filter)
            positive, negative = example_vectors(self.vectors([*examples]), ids)
            wanted = limit + SLACK + len(examples)  # the examples may be among the best
            query = None
            if strategy == "average_vector":
                query = check_vectors(average(positive, negative)[np.newaxis], self._backend.dim)

            def found() -> list[Hits]:
                others = self._without(chosen, keep)
                if query is not None:
                    return self._backend.nearest(query, wanted, others, None)
                return [self._backend.best_score(positive, negative, wanted, others)]

            for _ in range(_SEARCHES):
                (hits,), is_whole = self._kept(found(), keep, wanted, limit + len(examples))
                if is_whole:
                    break
        return rank((hit for hit in hits if str(hit.id) not in examples), limit)

    def create_payload_index(self, field: str, kind: PayloadKind) -> None:
        """Index a payload field, so that filters on it need not read payloads.

        What filters match stays the same as long as the field holds what `kind` says: other values
        are not in the index, and conditions may miss or misread them. An index of another kind on
        the same field is replaced. faiss and Qdrant's local mode have no such indexes: there this
        only checks its arguments.

        Args:
            field: Its path in Qdrant's syntax: `album`, `camera.year`; a name with characters other
                than letters, digits, _ and - in double quotes. Fields of the objects in a list are
                refused; what a plain list holds is indexed by the list's name.
            kind: What the field holds.
        """
        path, checked = check_field(field), check_kind(kind)
        self._backend.check_writable()
        self._backend.create_payload_index(path, checked)

    def payload_indexes(self) -> dict[str, str]:
        """Return field path -> kind of every index; empty where the engine has none."""
        return self._backend.payload_indexes()

    def facet(self, field: str, limit: int = 20) -> list[tuple[str | int | bool, int]] | None:
        """Return the most frequent values of a field, with the number of points that have each.

        A server's numbers may be estimates, and include the points of other programs.

        Args:
            field: As in `create_payload_index`.
            limit: Values to return, at most.

        Returns:
            The most frequent first; None where the engine cannot count them: the field has no
            payload index of kind keyword, integer or bool, or it is faiss.
        """
        check_limit(limit)
        return self._backend.facet(check_field(field), limit)

    def retrieve(
        self, image_ids: Sequence[str], *, tokens: bool = True
    ) -> dict[str, Mapping[str, Any]]:
        """Return id -> payload, with or without token bytes; unknown ids are left out."""
        points = self._backend.fetch(check_ids(image_ids), payload=True, tokens=tokens)
        return {point.id: point.payload for point in points}

    def vectors(self, image_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Return id -> `(d,)` vector of unit length; unknown ids are left out."""
        points = self._backend.fetch(check_ids(image_ids), vectors=True)
        return {point.id: point.vector for point in points}

    def scroll(
        self,
        *,
        batch_size: int = 256,
        filter: Filter | None = None,
        payload: bool = True,
        tokens: bool = False,
        vectors: bool = False,
    ) -> Iterator[list[Point]]:
        """Yield every point that matches the filter once, in order of id, in pages.

        Points written or deleted between pages may or may not be seen; all others are, exactly
        once. So the points of a page may be deleted or changed before the next page.

        Args:
            batch_size: Points in a page, at most.
            filter: Which points; None or `{}` for all.
            payload: Whether to read payloads; if not, they are empty.
            tokens: Whether payloads include `_edje.tokens`.
            vectors: Whether to read vectors, `(d,)` float32; if not, they have width 0.
        """
        check_batch_size(batch_size)
        chosen = self._backend.translate(filter)
        self._backend.check_open()

        def pages() -> Iterator[list[Point]]:
            start = None
            while True:
                points, start = self._backend.page(
                    start, batch_size, chosen, payload=payload, tokens=tokens, vectors=vectors
                )
                if points:
                    yield points
                if start is None:
                    return

        return pages()

    def orders(self, fields: Sequence[str]) -> tuple[str, ...]:
        """Return those of some top-level fields by whose dates `newest` can order points.

        faiss and Qdrant's local mode order by any field; other engines by fields with a payload
        index of the kind `datetime`.
        """
        return tuple(field for field in fields if self._backend.orders(field))

    def newest(
        self,
        fields: Sequence[str],
        *,
        start: Any = None,
        size: int = 256,
        filter: Filter | None = None,
    ) -> NewestPage:
        """Read a page of points, latest first, by the first of several fields that holds a date.

        Points with equal dates come in order of id; those without a date come last. Payloads have
        no token bytes. What is written between two pages may or may not be seen.

        Args:
            fields: Top-level fields with dates, which this index `orders`.
            start: None for the first page, else `next` of the page before, with the same fields
                and filter; it can be kept as JSON.
            size: Points of the page, at most.
            filter: Which points; None or `{}` for all.

        Raises:
            ConfigError: The index cannot order by one of the fields, `start` is not a position, or
                the filter cannot be used.
        """
        check_batch_size(size)
        paths = [check_field(field) for field in fields]
        if missing := [path for path in paths if not self._backend.orders(path)]:
            raise ConfigError(
                f"there is no payload index of the kind datetime of {', '.join(missing)}; create "
                f"it with create_payload_index({missing[0]!r}, 'datetime')"
            )
        self._backend.check_open()
        return self._backend.newest(paths, start, size, filter)

    def delete(self, image_ids: Sequence[str]) -> None:
        """Delete points; unknown ids are ignored."""
        ids = check_ids(image_ids)
        self._backend.check_writable()
        with self._reported(ids):
            if ids:
                self._check_before_write()
            self._backend.delete(ids)

    def delete_of_others(self, point_ids: Sequence[str]) -> None:
        """Delete points by ids as `scroll` returns them, also the integers of other programs."""
        integers = [point_id for point_id in point_ids if point_id.isdecimal()]
        self.delete([point_id for point_id in point_ids if not point_id.isdecimal()])
        self._backend.check_writable()
        if integers:
            with self._reported([]):
                self._check_before_write()
                self._backend.delete(integers)

    def delete_matching(self, filter: Filter) -> None:
        """Delete every point that matches the filter; an empty one is refused.

        A server in strict mode also refuses fields without a payload index. A request without an
        answer is sent again, which also deletes what was written in between.
        """
        chosen = self._backend.translate(filter)
        require_filter(filter)
        self._backend.check_writable()
        with self._reported(None):
            self._check_before_write()
            self._backend.delete_matching(chosen)

    def count(self, filter: Filter | None = None) -> int:
        """Count the points that match the filter; all points without one."""
        return self._backend.count(self._backend.translate(filter))

    def sign(self, image_ids: Sequence[str], keys: Mapping[str, str]) -> None:
        """Set keys inside `_edje` of stored payloads on a server; others there stay.

        Args:
            image_ids: Which points; unknown ids are ignored.
            keys: Key -> value, such as the key of a model.
        """
        ids = check_ids(image_ids)
        self._backend.check_writable()
        if ids:
            self._backend.sign(ids, keys)

    def remove(self) -> None:
        """Delete the index with all its points, and close it.

        Raises:
            StoreError: It cannot be deleted.
        """
        self._backend.check_writable()
        self._backend.remove()

    def close(self, because: Callable[[], EdjeError] | None = None) -> None:
        """Flush and release files and connections; a second call does nothing.

        Args:
            because: Returns the error that later calls raise; by default a StoreError that says
                that the index is closed.
        """
        self._backend.close(because)

    def _without(self, chosen: Any, keep: Keep | None) -> Any:
        """Return a translated filter that leaves out the points of other programs, if need be."""
        if keep is None or not self._leave_out:
            return chosen
        return self._backend.without(chosen, self._others)

    def _kept(
        self, found: list[Hits], keep: Keep | None, wanted: int, limit: int
    ) -> tuple[list[Hits], bool]:
        """Return the hits to keep, and whether each query has `limit` of them, or all there are.

        Args:
            found: Hits of each query.
            keep: Says which; None for all.
            wanted: Hits that were asked for.
            limit: Hits that are needed.
        """
        if keep is None or not self._backend.shared:
            return found, True
        kept: list[Hits] = []
        others: set[str] = set()
        is_whole = True
        for hits in found:
            listed = [*hits]
            own: list[Hit] = []
            for hit in listed:
                if keep(str(hit.id), hit.payload or {}):
                    own.append(hit)
                else:
                    others.add(str(hit.id))
            kept.append(own)
            is_whole &= len(own) >= limit or len(listed) < wanted
        if not is_whole:
            self._others, self._leave_out = self._others | others, True
        return kept, is_whole

    def _checked(
        self,
        vectors: NDArray[np.float32],
        limit: int,
        filter: Filter | None,
        timeout: float | None,
    ) -> tuple[NDArray[np.float32], Any]:
        check_limit(limit)
        return check_vectors(vectors, self._backend.dim), self._backend.translate(filter, timeout)


def _rows(vectors: Any) -> int:
    """Return the number of `(q, d)` vectors, which are not checked yet."""
    shape: Sequence[int] = getattr(vectors, "shape", ())
    return shape[0] if len(shape) == 2 else 1
