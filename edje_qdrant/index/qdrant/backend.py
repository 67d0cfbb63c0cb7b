"""A collection on a Qdrant server, cluster or Cloud, or in the client's memory."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import (
    CollectionExistsError,
    CollectionNotFoundError,
    ConfigError,
    EdjeError,
    StoreError,
)
from edje_qdrant.index.backend import (
    Backend,
    FusedHit,
    Hits,
    as_points,
    fused_hits,
    word_vectors,
)
from edje_qdrant.index.batches import by_payload, in_runs, vectors_per_request
from edje_qdrant.index.filters.field_paths import TOKENS_KEY
from edje_qdrant.index.filters.filter import Filter
from edje_qdrant.index.hnsw import Reach
from edje_qdrant.index.newest import Dated, NewestPage, merged, moment_of
from edje_qdrant.index.payload_indexes import FACET_KINDS, kinds_of, qdrant_schema
from edje_qdrant.index.qdrant import requests as qdrant_requests
from edje_qdrant.index.qdrant.aliases import collection_of
from edje_qdrant.index.qdrant.connection import Connection, QdrantOptions
from edje_qdrant.index.qdrant.filter import (
    ServerFacts,
    has_indexes,
    memory_filter,
    require_indexes,
    require_versions,
    server_filter,
)
from edje_qdrant.index.qdrant.metadata import (
    Found,
    as_metadata,
    new_settings,
    read_settings,
    read_version,
    require_absent,
    settings_like,
    was_made,
)
from edje_qdrant.index.qdrant.settings import (
    QdrantSettings,
    check_settings,
    needed_features,
)
from edje_qdrant.index.qdrant.strict_mode import (
    check_size,
    exact_count,
    is_about_limits,
    least,
    losses,
    read_limits,
)
from edje_qdrant.index.qdrant.versions import ServerVersion
from edje_qdrant.index.ranking import SLACK
from edje_qdrant.index.validate import (
    CheckedPayload,
    CheckedPoint,
    check_dim,
    check_metadata,
    check_name,
)
from edje_qdrant.index.words import WORDS_KEY, WORDS_VECTOR, WordVector
from edje_qdrant.types import Point

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models

__all__ = ["QdrantBackend"]

T = TypeVar("T")

_log = logging.getLogger(__name__)

# Seconds for which payload indexes are remembered, as other processes may create and drop some.
_INDEXES_KEPT = 60.0

# Points of other programs that a request names by their ids, at most.
_MOST_NAMED = 1000

# Ids in one request, at most.
_IDS_PER_REQUEST = 4096


class QdrantBackend(Backend):
    """A Qdrant collection, which many processes may use at once.

    A client passed in is not closed here. Every acknowledged write is in the server's log on disk.
    Writing again changes nothing, so requests without an answer are sent again.
    """

    name = "qdrant"
    shared = True

    def __init__(
        self,
        connection: Connection,
        name: str,
        found: Found,
        version: ServerVersion,
        options: QdrantOptions,
    ) -> None:
        self.dim = found.dim
        self.batch_size = options.batch_size
        self._take(found)
        self._version = version
        self._facts = ServerFacts(version, self._index_of)
        self._told: set[str] = set()
        self._connection = connection
        self._client = connection.client
        self._collection = self.resolved_name = name
        self._retries = options.retries

    @classmethod
    def create(
        cls,
        location: str | QdrantClient,
        name: str,
        dim: int,
        metadata: Mapping[str, Any],
        options: QdrantOptions,
        settings: QdrantSettings | None,
        *,
        like: str | None = None,
    ) -> QdrantBackend:
        """Make an empty collection; see `create_on_server`."""
        check_name(name)
        check_dim(dim)
        check_settings(settings, folder=False)
        kept = check_metadata(metadata)
        connection = Connection(location, options)
        try:
            version = read_version(connection, name)
            if settings is not None and not connection.is_local:
                # An older server would leave out what it does not know, without an error.
                for where, feature in needed_features(settings).items():
                    version.require(feature, where)
            require_absent(connection, name)
            wanted = (
                new_settings(dim, settings or QdrantSettings(), words=WORDS_KEY in kept)
                if like is None
                else settings_like(connection, like, dim)
            )
            try:
                connection.call(
                    name,
                    connection.client.create_collection,
                    name,
                    **wanted,
                    metadata=as_metadata(kept),
                )
            except (ConfigError, StoreError) as error:
                # Made by the first try, of which the answer was lost?
                if not was_made(connection, name, kept):
                    require_absent(connection, name)  # another process may have been quicker
                    if "already exists" in str(error):  # and the server is still creating it
                        raise CollectionExistsError(connection.address, name) from error
                    raise
            # Read back, as an old server drops metadata without an error.
            found = read_settings(connection, name)
        except BaseException:
            connection.close()
            raise
        return cls(connection, name, found._replace(dim=dim, metadata=kept), version, options)

    @classmethod
    def open(cls, location: str | QdrantClient, name: str, options: QdrantOptions) -> QdrantBackend:
        """Open a collection; see `open_on_server`.

        An alias is resolved once, here: an alias that is moved later changes nothing.
        """
        connection = Connection(location, options)
        try:
            version = read_version(connection, name)
            opened = collection_of(connection, name)
            try:
                found = read_settings(connection, opened)
            except (CollectionNotFoundError, ConfigError):
                if opened == name:
                    raise
                # The alias was moved just now, or the API key may use its name alone.
                opened = name
                found = read_settings(connection, opened)
        except BaseException:
            connection.close()
            raise
        connection.alias = None if opened == name else name
        return cls(connection, opened, found, version, options)

    def check_open(self) -> None:
        self._connection.require_open(self._collection)

    def patient(self, seconds: float) -> AbstractContextManager[None]:
        return self._connection.patient(seconds)

    def give_up(self) -> None:
        self._connection.give_up()

    def limit(
        self, queries: int, left: Callable[[], float] | None = None
    ) -> AbstractContextManager[Any]:
        return self._connection.limit(queries=queries, left=left)

    def probe(self, *, points: bool) -> dict[str, Any]:
        self.check_open()
        if self._connection.is_local:
            return super().probe(points=points)
        name, other = self._collection, self._connection.for_probes()
        metadata = read_settings(other, name).metadata
        if points:
            other.call(name, other.client.count, name, exact=False)
        return metadata

    def named_now(self, name: str) -> tuple[str, dict[str, Any]]:
        connection = self._connection
        if not connection.is_local:
            connection = connection.for_probes()
        resolved = collection_of(connection, name)
        return resolved, read_settings(connection, resolved).metadata

    def give_up_when(self, away: threading.Event, failed: Callable[[], None]) -> None:
        self._connection.give_up_when(away, failed)

    def set_metadata(self, metadata: dict[str, Any]) -> None:
        """Replace the metadata and read it back; what others keep there stays."""
        self._connection.call(
            self._collection,
            self._client.update_collection,
            self._collection,
            metadata=as_metadata(metadata),
        )
        # In a cluster another node may answer, a moment behind the one that wrote.
        for tries in range(self._retries + 1):
            self.reload_metadata()
            if self.metadata == metadata:
                return
            if tries < self._retries:
                self._connection.pause(tries)
        raise StoreError(
            f"collection {self._collection!r} at {self._connection.address} has other metadata "
            "than was just written: another process wrote it at the same time, or the server mixed "
            "old and new; let one process write it, and check that the server is Qdrant 1.16 or "
            "later"
        )

    def reload_metadata(self) -> None:
        self._take(read_settings(self._connection, self._collection))

    def translate(
        self, filter: Filter | None, timeout: float | None = None
    ) -> models.Filter | None:
        if self._connection.is_local:
            return memory_filter(filter)
        with self._connection.within(timeout):
            chosen = server_filter(filter, self._facts)
            if chosen is not None:
                self._within_limits(lambda: self._check_filter(chosen))
            return chosen

    def _check_filter(self, chosen: models.Filter) -> None:
        check_size(chosen, self._limits)
        if not self._limits.unindexed_reads:
            require_indexes(chosen, self._facts)

    def without(
        self, chosen: models.Filter | None, others: Collection[str]
    ) -> models.Filter | None:
        limits = self._limits
        named = sorted(others)[: least(_MOST_NAMED, limits.values)]
        # In strict mode, conditions may need an index; those on ids never do.
        both = qdrant_requests.without(chosen, named, by_key=limits.unindexed_reads)
        try:
            check_size(both, limits)
        except ConfigError:
            return chosen  # what is found is left out all the same
        return both

    def nearest(
        self,
        queries: NDArray[np.float32],
        wanted: int,
        chosen: models.Filter | None,
        timeout: float | None,
    ) -> list[Hits]:
        """Search; all vectors travel in one request of up to 16 MB."""
        self.check_open()
        with self._connection.within(timeout) as timed:
            return self._query([query.tolist() for query in queries], wanted, chosen, timed)

    async def nearest_async(
        self,
        queries: NDArray[np.float32],
        wanted: int,
        chosen: models.Filter | None,
        timeout: float | None,
    ) -> list[Hits]:
        if self._connection.is_local:
            return await super().nearest_async(queries, wanted, chosen, timeout)
        self.check_open()
        return await self._within_limits_async(queries.tolist(), wanted, chosen, timeout)

    async def _within_limits_async(
        self,
        queries: list[Any],
        wanted: int,
        chosen: models.Filter | None,
        timeout: float | None,
        weight: float | None = None,
    ) -> list[Hits]:
        with self._connection.within(timeout) as timed:
            if chosen is not None and self._are_indexes_old():
                await asyncio.to_thread(self._read_info)
            try:
                return await self._ask_async(queries, wanted, chosen, timed, weight)
            except ConfigError as error:
                if not await asyncio.to_thread(self._limits_changed, error):
                    raise
                return await self._ask_async(queries, wanted, chosen, timed, weight)

    def nearest_or_words(
        self,
        queries: NDArray[np.float32],
        words: Sequence[WordVector],
        weight: float,
        wanted: int,
        chosen: models.Filter | None,
        timeout: float | None,
    ) -> list[list[FusedHit]]:
        """Search; each query is three requests, which travel together."""
        self.check_open()
        given = [*zip(queries.tolist(), words, strict=True)]
        with self._connection.within(timeout) as timed:
            answers = self._query(given, wanted, chosen, timed, weight)
            return self._joined(answers, queries)

    async def nearest_or_words_async(
        self,
        queries: NDArray[np.float32],
        words: Sequence[WordVector],
        weight: float,
        wanted: int,
        chosen: models.Filter | None,
        timeout: float | None,
    ) -> list[list[FusedHit]]:
        if self._connection.is_local:
            return await super().nearest_or_words_async(
                queries, words, weight, wanted, chosen, timeout
            )
        self.check_open()
        given = [*zip(queries.tolist(), words, strict=True)]
        answers = await self._within_limits_async(given, wanted, chosen, timeout, weight)
        return await asyncio.to_thread(self._joined, answers, queries)

    def _joined(
        self, answers: Sequence[Hits], queries: NDArray[np.float32]
    ) -> list[list[FusedHit]]:
        return fused_hits(answers, queries, lambda ids: self.fetch(ids, vectors=True))

    def create_words(self) -> None:
        from qdrant_client import models

        if self._has_words():
            return
        if not self._connection.is_local:
            try:
                self._version.require("new vector", "the vector of words")
            except ConfigError as error:
                raise ConfigError(
                    f"{error}; or copy the collection to a new one that is created with text "
                    "fields: edje-qdrant copy --text-fields"
                ) from error
        sparse = models.SparseVectorConfig(modifier=models.Modifier.IDF)
        self._write(
            self._client.create_vector_name,
            WORDS_VECTOR,
            models.SparseVectorNameConfig(sparse=sparse),
        )

    def check_drops_words(self) -> None:
        if not self._connection.is_local and self._has_words():
            try:
                self._version.require("deletion of a vector", "dropping the words")
            except ConfigError as error:
                raise ConfigError(
                    f"{error}; the words stay, and searches without hybrid do not use them"
                ) from error

    def drop_words(self) -> None:
        if self._has_words():
            self._write(self._client.delete_vector_name, WORDS_VECTOR)

    def _has_words(self) -> bool:
        self.check_open()
        name = self._collection
        info = self._connection.call(name, self._client.get_collection, name)
        return WORDS_VECTOR in (info.config.params.sparse_vectors or {})

    def set_words(self, words: Mapping[str, WordVector]) -> None:
        def send() -> None:
            for run in in_runs([*words], least(self.batch_size, self._limits.points_written)):
                operation = qdrant_requests.setting_words({each: words[each] for each in run})
                self._write(self._client.batch_update_points, [operation])

        self._within_limits(send)

    def fetch_words(self, ids: Sequence[str]) -> dict[str, WordVector]:
        self.check_open()
        found: dict[str, WordVector] = {}
        for run in in_runs([*ids], self.batch_size):
            records = self._connection.call(
                self._collection,
                self._client.retrieve,
                self._collection,
                run,
                with_payload=False,
                with_vectors=[WORDS_VECTOR],
            )
            found.update(word_vectors(records))
        return found

    def best_score(
        self,
        positive: NDArray[np.float32],
        negative: NDArray[np.float32],
        wanted: int,
        chosen: models.Filter | None,
    ) -> Hits:
        query = qdrant_requests.best_score(positive, negative)
        return self._query([query], wanted, chosen, {})[0]

    def fetch(
        self, ids: Sequence[str], *, payload: bool = False, tokens: bool = False,
        vectors: bool = False,
    ) -> list[Point]:  # fmt: skip
        self.check_open()
        step = self.batch_size if payload else _IDS_PER_REQUEST
        selected = qdrant_requests.selected(payload, tokens)
        points: list[Point] = []
        for run in in_runs([*ids], vectors_per_request(self.dim) if vectors else step):
            records = self._connection.call(
                self._collection,
                self._client.retrieve,
                self._collection,
                run,
                with_payload=selected,
                with_vectors=self._embeddings(vectors),
            )
            points += as_points(records, vectors=vectors)
        return points

    def page(
        self,
        start: Any,
        size: int,
        chosen: models.Filter | None,
        *,
        payload: bool,
        tokens: bool,
        vectors: bool,
    ) -> tuple[list[Point], Any]:
        """Read a page; with vectors it is limited to 16 MB of them."""
        if vectors:
            size = min(size, vectors_per_request(self.dim))
        records, following = self._within_limits(
            lambda: self._connection.call(
                self._collection,
                self._client.scroll,
                self._collection,
                scroll_filter=chosen,
                limit=least(size, self._limits.points_found),
                offset=start,
                with_payload=qdrant_requests.selected(payload, tokens),
                with_vectors=self._embeddings(vectors),
            )
        )
        return as_points(records, vectors=vectors), following

    def orders(self, path: str) -> bool:
        if self._connection.is_local:  # it goes through all points
            return True
        index = self._index_of(path, again=False)
        return index is not None and kinds_of({path: index})[path] == "datetime"

    def newest(
        self, fields: Sequence[str], start: Any, size: int, filter: Filter | None
    ) -> NewestPage:
        return merged(self, fields, start, size, filter)

    def latest(
        self, path: str, before: int | None, size: int, chosen: models.Filter | None
    ) -> tuple[list[Dated], bool]:
        from qdrant_client import models

        order = models.OrderBy(
            key=path,
            direction=models.Direction.DESC,
            start_from=None if before is None else moment_of(before - 1),
        )

        def send() -> tuple[list[Any], bool]:
            asked = least(size, self._limits.points_found)
            records, _ = self._connection.call(
                self._collection,
                self._client.scroll,
                self._collection,
                scroll_filter=chosen,
                limit=asked,
                order_by=order,
                with_payload=qdrant_requests.selected(payload=True, tokens=False),
                with_vectors=False,
            )
            return records, len(records) < asked

        records, is_last = self._within_limits(send)
        points = as_points(records, vectors=False)
        return [
            Dated(int(record.order_value), point)
            for record, point in zip(records, points, strict=True)
        ], is_last

    def write(self, points: Sequence[CheckedPoint]) -> None:
        self._upsert(points)

    def insert(self, points: Sequence[CheckedPoint]) -> None:
        from qdrant_client import models

        self._upsert(points, models.UpdateMode.INSERT_ONLY)

    def update(self, points: Sequence[CheckedPoint]) -> None:
        from qdrant_client import models

        if not self._version.knows("UpdateMode"):
            stored = {point.id for point in self.fetch([point.id for point in points])}
            points = [point for point in points if point.id in stored]
        if points:
            self._upsert(points, models.UpdateMode.UPDATE_ONLY)

    def _upsert(
        self, points: Sequence[CheckedPoint], mode: models.UpdateMode | None = None
    ) -> None:
        more: dict[str, Any] = {}
        if mode is not None and self._version.knows("UpdateMode"):
            more["update_mode"] = mode
        made = [qdrant_requests.point(each) for each in points]

        def send() -> None:
            for run in in_runs(made, least(len(made), self._limits.points_written)):
                self._write(self._client.upsert, run, **more)

        self._within_limits(send)

    def set_payload(self, payloads: Sequence[CheckedPayload]) -> None:
        self._within_limits(
            lambda: self._connection.call(self._collection, self._set_payload, payloads)
        )

    def remove_keys(self, ids: Sequence[str], paths: Sequence[str]) -> None:
        def send() -> None:
            for run in in_runs([*ids], least(_IDS_PER_REQUEST, self._limits.values)):
                self._write(self._client.delete_payload, [*paths], qdrant_requests.stored(run))

        self._within_limits(send)

    def delete(self, ids: Sequence[str]) -> None:
        from qdrant_client import models

        self.check_open()
        for run in in_runs([*ids], _IDS_PER_REQUEST):
            named = [int(each) if each.isdecimal() else each for each in run]
            self._write(self._client.delete, models.PointIdsList(points=named))

    def delete_matching(self, chosen: models.Filter) -> None:
        from qdrant_client import models

        # Over gRPC, a condition that the server does not know would delete every other point too.
        require_versions(chosen, self._version, again=True)

        def send() -> None:
            if not self._limits.unindexed_writes:
                require_indexes(chosen, self._facts)
            self._write(self._client.delete, models.FilterSelector(filter=chosen))

        self._within_limits(send)

    def count(self, chosen: models.Filter | None) -> int:
        return self._within_limits(
            lambda: exact_count(self._connection, self._collection, chosen, self._limits)
        )

    def create_payload_index(self, path: str, kind: str) -> None:
        schema = qdrant_schema(kind)
        self.check_open()
        if not self._connection.is_local:  # every filter goes through all points there
            self._version.require(kind, f"the payload index of {path!r}")
            self._write(self._client.create_payload_index, path, field_schema=schema)
            self._indexes_until = 0.0

    def payload_indexes(self) -> dict[str, str]:
        self._read_info()
        return kinds_of(self._indexes)

    def facet(self, path: str, limit: int) -> list[tuple[Any, int]] | None:
        self.check_open()
        if not self._connection.is_local and self.payload_indexes().get(path) not in FACET_KINDS:
            return None
        name = self._collection
        answer = self._within_limits(
            lambda: self._connection.call(name, self._client.facet, name, path, limit=limit)
        )
        return [(hit.value, hit.count) for hit in answer.hits]

    def sign(self, ids: Sequence[str], keys: Mapping[str, str]) -> None:
        def send() -> None:
            for run in in_runs([*ids], least(_IDS_PER_REQUEST, self._limits.values)):
                chosen = qdrant_requests.stored(run)
                self._write(self._client.set_payload, dict(keys), chosen, key=TOKENS_KEY)

        self._within_limits(send)

    def remove(self) -> None:
        self._connection.call(self._collection, self._client.delete_collection, self._collection)

    def close(self, because: Callable[[], EdjeError] | None = None) -> None:
        self._connection.close(because)

    def _embeddings(self, wanted: bool) -> bool | list[str]:
        """Return which vectors to read: the embeddings, without words beside them."""
        return [""] if wanted and WORDS_KEY in self.metadata else wanted

    def _take(self, found: Found) -> None:
        """Remember what the server says of the collection."""
        self.metadata = found.metadata
        self._oversampling = found.oversampling
        self._indexes = found.indexes
        self._limits = found.limits
        self._indexes_until = time.monotonic() + _INDEXES_KEPT

    def _read_info(self) -> None:
        """Read indexes and limits again."""
        info = self._connection.call(
            self._collection, self._client.get_collection, self._collection
        )
        self._indexes, self._limits = info.payload_schema, read_limits(info)
        self._indexes_until = time.monotonic() + _INDEXES_KEPT

    def _within_limits(self, send: Callable[[], T]) -> T:
        """Send; once more if it is refused, and the limits are others than those it kept to."""
        try:
            return send()
        except ConfigError as error:
            if not self._limits_changed(error):
                raise
            return send()

    def _limits_changed(self, error: ConfigError) -> bool:
        """Read the limits again if something was refused because of them; return if they changed.

        Args:
            error: From a server, or from a check before anything was sent.
        """
        if self._connection.is_local or not is_about_limits(error):
            return False
        before = self._limits
        try:
            self._read_info()
        except EdjeError:  # what was refused says more
            return False
        return self._limits != before

    def _index_of(self, path: str, again: bool) -> Any:
        """Return the payload index of a field; None if there is none."""
        if again or self._are_indexes_old():
            self._read_info()
        return self._indexes.get(path)

    def _are_indexes_old(self) -> bool:
        return time.monotonic() > self._indexes_until

    def _write(self, method: Any, *args: Any, **more: Any) -> None:
        """Call a method of the client and wait until it is done."""
        name = self._collection
        self._connection.call(name, method, name, *args, **more, wait=True)

    def _set_payload(self, payloads: Sequence[CheckedPayload]) -> None:
        local = self._connection.is_local
        if local:  # it goes through every point to find one by a filter
            ids = [item.id for item in payloads]
            found = self._client.retrieve(self._collection, ids, with_payload=False)
            known = {str(record.id) for record in found}
            payloads = [item for item in payloads if item.id in known]
        operations = [
            qdrant_requests.setting_payload(payload, run if local else qdrant_requests.stored(run))
            for ids, payload in by_payload(payloads)
            for run in in_runs(ids, least(len(ids), self._limits.values))
        ]
        if operations:
            self._client.batch_update_points(self._collection, operations, wait=True)

    def _query(
        self,
        queries: list[Any],
        wanted: int,
        chosen: models.Filter | None,
        timed: Mapping[str, int],
        weight: float | None = None,
    ) -> list[Hits]:
        """Send queries; with a weight, each is an embedding and words, and has three answers."""
        name = self._collection
        if chosen is not None and not self._connection.is_local and self._are_indexes_old():
            self._read_info()

        def send() -> list[Hits]:
            answers: list[models.QueryResponse] = []
            for run, more in self._requests(queries, wanted, chosen, timed, weight):
                answers += self._connection.call(
                    name, self._client.query_batch_points, name, run, **more
                )
            return [answer.points for answer in answers]

        return self._within_limits(send)

    async def _ask_async(
        self,
        queries: list[Any],
        wanted: int,
        chosen: models.Filter | None,
        timed: Mapping[str, int],
        weight: float | None = None,
    ) -> list[Hits]:
        name = self._collection
        answers: list[Any] = []
        for run, more in self._requests(queries, wanted, chosen, timed, weight):
            answers += await self._connection.call_async(
                name, "query_batch_points", name, run, **more
            )
        return [answer.points for answer in answers]

    def _requests(
        self,
        queries: list[Any],
        wanted: int,
        chosen: models.Filter | None,
        timed: Mapping[str, int],
        weight: float | None = None,
    ) -> Iterator[tuple[list[models.QueryRequest], dict[str, int]]]:
        """Yield requests that stay below 16 MB and within the limits, and their time limit.

        Raises:
            ConfigError: More points are wanted than a search may ask for.
        """
        limits = self._limits
        most = limits.points_found
        if most is not None and wanted - SLACK > most:
            raise ConfigError(
                f"{wanted - SLACK} candidates are asked for, and the strict mode of "
                f"{self._collection!r} at {self._connection.address} allows {most} in one search "
                f"(max_query_limit); ask for {most} or fewer (num_candidates), or "
                "raise that limit"
            )
        reach: Reach | None = Reach.ALL
        if self._connection.is_local:
            reach = None  # it scans everything, and warns when told how to search
        elif chosen is not None:
            # A condition on the reserved key leaves out few points, or none.
            indexes = {**self._indexes, TOKENS_KEY: None}
            reach = Reach.MOST if has_indexes(chosen, indexes) else Reach.FEW
        wanted = least(wanted, most)
        self._tell(losses(wanted, reach, self._oversampling, limits))
        params = qdrant_requests.search_params(wanted, reach, self._oversampling, limits)
        if weight is None:
            requests = qdrant_requests.best(queries, wanted, chosen, params)
        else:
            several = (
                qdrant_requests.best_or_words(vector, words, weight, wanted, chosen, params)
                for vector, words in queries
            )
            requests = [*chain.from_iterable(several)]
        if requests and not self._connection.is_local:
            for feature in qdrant_requests.features(requests[0]):
                self._version.require(feature, "the search")
        # One of the requests has the vector twice, with its prefetches.
        width = self.dim if weight is None else 2 * self.dim
        size = least(vectors_per_request(width), limits.searches)
        for run in in_runs(requests, size):
            yield run, limits.timed(timed)

    def _tell(self, lost: Mapping[str, str]) -> None:
        """Log what the limits cost, each once."""
        for limit, words in lost.items():
            if limit not in self._told:
                self._told.add(limit)
                _log.warning(
                    "strict mode of the collection %r at %s (%s): %s",
                    self._collection, self._connection.address, limit, words,
                )  # fmt: skip
