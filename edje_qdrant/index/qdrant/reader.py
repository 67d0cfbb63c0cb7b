"""What is read from a Qdrant collection: searches, payloads, vectors, counts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.index.batches import in_runs, vectors_per_request
from edje_qdrant.index.filters.filter import Filter, qdrant_filter
from edje_qdrant.index.hnsw import Reach, reach_of
from edje_qdrant.index.pages import pages
from edje_qdrant.index.payload_indexes import kinds_of
from edje_qdrant.index.qdrant import requests as qdrant_requests
from edje_qdrant.index.qdrant.connection import Connection, QdrantOptions
from edje_qdrant.index.ranking import SLACK, rank
from edje_qdrant.index.recommend import Strategy, average, check_examples, example_vectors
from edje_qdrant.index.validate import check_batch_size, check_ids, check_limit, check_vectors
from edje_qdrant.types import Candidate, Point

if TYPE_CHECKING:
    from qdrant_client import models

__all__ = ["IDS_PER_REQUEST", "QdrantReader"]

#: Ids in one request, at most.
IDS_PER_REQUEST = 4096


class QdrantReader:
    """Read a collection; what writes it is in `QdrantIndex`."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        dim: int,
        options: QdrantOptions,
        oversampling: float | None,
    ) -> None:
        self._connection = connection
        self._client = connection.client
        self._name = name
        self._dim = dim
        self._options = options
        self._oversampling = oversampling

    def existing(self, image_ids: Sequence[str]) -> set[str]:
        return {str(r.id) for r in self._records(image_ids, IDS_PER_REQUEST, with_payload=False)}

    def search(
        self,
        vectors: NDArray[np.float32],
        limit: int,
        *,
        filter: Filter | None = None,
        timeout: float | None = None,
    ) -> list[list[Candidate]]:
        """Find the nearest points of each of `(q, d)` vectors, best first, `limit` at most.

        All vectors travel in one request, up to 16 MB of them. With a filter two short requests go
        before it, which tell how many points the filter lets through.

        Raises:
            ConfigError: The vectors do not fit the collection, `limit` is below 1, or the filter
                cannot be used.
            EngineUnavailableError: The server cannot be reached.
        """
        check_limit(limit)
        queries = [query.tolist() for query in check_vectors(vectors, self._dim)]
        with self._connection.within(timeout) as limits:
            return self._ranked(queries, limit, qdrant_filter(filter), limits=limits)

    async def search_async(
        self,
        vectors: NDArray[np.float32],
        limit: int,
        *,
        filter: Filter | None = None,
        timeout: float | None = None,
    ) -> list[list[Candidate]]:
        """Do as `search` does, while the event loop goes on; in memory, in another thread.

        Raises:
            ConfigError: As `search`.
            EngineUnavailableError: As `search`.
        """
        if self._connection.is_local:
            return await asyncio.to_thread(
                self.search, vectors, limit, filter=filter, timeout=timeout
            )
        check_limit(limit)
        queries = [query.tolist() for query in check_vectors(vectors, self._dim)]
        chosen = qdrant_filter(filter)
        self._connection.require_open(self._name)
        ask = self._connection.call_async
        with self._connection.within(timeout) as limits:
            reach = Reach.ALL
            if chosen is not None and queries:
                matching, total = [
                    (await ask(self._name, "count", self._name, each, exact=False, **limits)).count
                    for each in (chosen, None)
                ]
                reach = reach_of(matching, total)
            requests = self._requests(queries, limit, chosen, reach)
            answers: list[Any] = []
            for run in in_runs(requests, vectors_per_request(self._dim)):
                answers += await ask(self._name, "query_batch_points", self._name, run, **limits)
        return [_best(answer, limit) for answer in answers]

    def recommend(
        self,
        positive_ids: Sequence[str],
        negative_ids: Sequence[str],
        limit: int,
        *,
        filter: Filter | None = None,
        strategy: Strategy = "average_vector",
    ) -> list[Candidate]:
        """Find points like the positive examples and unlike the negative ones, best first.

        Raises:
            ConfigError: An id is unknown, examples, limit or strategy do not fit, or the filter
                cannot be used.
            EngineUnavailableError: The server cannot be reached.
        """
        check_limit(limit)
        ids = check_examples(positive_ids, negative_ids, strategy)
        chosen = qdrant_filter(filter)
        positive, negative = example_vectors(self.vectors([*ids.positive, *ids.negative]), ids)
        average(positive, negative, strategy)  # the server takes it; here it is checked
        query = qdrant_requests.like(positive, negative, strategy)
        return self._ranked([query], limit, chosen, [*ids.positive, *ids.negative])[0]

    def retrieve(
        self, image_ids: Sequence[str], *, tokens: bool = True
    ) -> dict[str, Mapping[str, Any]]:
        shown = qdrant_requests.shown(True, tokens)
        records = self._records(image_ids, self._options.batch_size, with_payload=shown)
        return {str(record.id): record.payload or {} for record in records}

    def vectors(self, image_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        step = vectors_per_request(self._dim)
        records = self._records(image_ids, step, with_payload=False, with_vectors=True)
        return {str(record.id): np.array(record.vector, np.float32) for record in records}

    def scroll(
        self,
        *,
        batch_size: int = 256,
        filter: Filter | None = None,
        payload: bool = True,
        tokens: bool = False,
        vectors: bool = False,
    ) -> Iterator[list[Point]]:
        """Yield every point that the filter lets through once, in order of id, in pages.

        With vectors a page is kept to 16 MB of them; see `VectorIndex.scroll` for the rest.

        Raises:
            ConfigError: `batch_size` is below 1, or the filter cannot be used.
            EngineUnavailableError: The server cannot be reached; raised before a page.
        """
        check_batch_size(batch_size)
        chosen = qdrant_filter(filter)
        self._connection.require_open(self._name)
        size = min(batch_size, vectors_per_request(self._dim)) if vectors else batch_size

        def fetch(start: Any) -> tuple[list[models.Record], Any]:
            return self._connection.call(
                self._name,
                self._client.scroll,
                self._name,
                scroll_filter=chosen,
                limit=size,
                offset=start,
                with_payload=qdrant_requests.shown(payload, tokens),
                with_vectors=vectors,
            )

        return pages(fetch, vectors=vectors)

    def count(self, filter: Filter | None = None) -> int:
        chosen = qdrant_filter(filter)
        return self._connection.call(
            self._name, self._client.count, self._name, chosen, exact=True
        ).count

    def payload_indexes(self) -> dict[str, str]:
        info = self._connection.call(self._name, self._client.get_collection, self._name)
        return kinds_of(info.payload_schema)

    def _ranked(
        self,
        queries: list[Any],
        limit: int,
        chosen: models.Filter | None,
        excluded: Sequence[str] = (),
        limits: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[list[Candidate]]:
        self._connection.require_open(self._name)
        reach = self._reach(chosen, limits) if queries else None
        if excluded:
            chosen = qdrant_requests.without(excluded, chosen)
        requests = self._requests(queries, limit, chosen, reach)
        answers: list[models.QueryResponse] = []
        for run in in_runs(requests, vectors_per_request(self._dim)):
            answers += self._connection.call(
                self._name, self._client.query_batch_points, self._name, run, **limits
            )
        return [_best(answer, limit) for answer in answers]

    def _requests(
        self, queries: list[Any], limit: int, chosen: models.Filter | None, reach: Reach | None
    ) -> list[models.QueryRequest]:
        return qdrant_requests.best(queries, limit + SLACK, chosen, reach, self._oversampling)

    def _reach(self, chosen: models.Filter | None, limits: Mapping[str, Any]) -> Reach | None:
        """Return how to search, None in local mode: it scans everything, and warns when told."""
        if self._connection.is_local:
            return None
        if chosen is None:
            return Reach.ALL
        matching, total = (
            self._connection.call(
                self._name, self._client.count, self._name, counted, exact=False, **limits
            ).count
            for counted in (chosen, None)
        )
        return reach_of(matching, total)

    def _records(
        self,
        image_ids: Sequence[str],
        step: int,
        *,
        with_payload: bool | models.PayloadSelectorExclude,
        with_vectors: bool = False,
    ) -> list[models.Record]:
        self._connection.require_open(self._name)
        records: list[models.Record] = []
        for ids in in_runs(check_ids(image_ids), step):
            records += self._connection.call(
                self._name,
                self._client.retrieve,
                self._name,
                ids,
                with_payload=with_payload,
                with_vectors=with_vectors,
            )
        return records


def _best(answer: models.QueryResponse, limit: int) -> list[Candidate]:
    return rank(((str(hit.id), hit.score, hit.payload or {}) for hit in answer.points), limit)
