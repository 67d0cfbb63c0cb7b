"""What is read from the embedded index: searches, payloads, vectors, counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import StoreError
from edje_qdrant.index.edge import requests as edge_requests
from edje_qdrant.index.edge.filter import edge_filter
from edje_qdrant.index.filters.filter import Filter
from edje_qdrant.index.folder import reporting
from edje_qdrant.index.hnsw import Reach, reach_of
from edje_qdrant.index.pages import pages
from edje_qdrant.index.payload_indexes import kinds_of
from edje_qdrant.index.ranking import SLACK, rank
from edje_qdrant.index.recommend import Strategy, average, check_examples, example_vectors
from edje_qdrant.index.validate import check_batch_size, check_ids, check_limit, check_vectors
from edje_qdrant.types import Candidate, Point

if TYPE_CHECKING:
    import qdrant_edge
    from qdrant_edge import EdgeShard, Query, Record

__all__ = ["EdgeReader"]


class EdgeReader:
    """Read an open shard; what writes it is in `EdgeIndex`."""

    def __init__(self, folder: Path, dim: int, shard: EdgeShard) -> None:
        self._folder = folder
        self._dim = dim
        self._shard: EdgeShard | None = shard

    def existing(self, image_ids: Sequence[str]) -> set[str]:
        ids = check_ids(image_ids)
        with self._engine() as shard:
            return {str(record.id) for record in shard.retrieve([*ids], False, False)}

    def search(
        self,
        vectors: NDArray[np.float32],
        limit: int,
        *,
        filter: Filter | None = None,
        timeout: float | None = None,  # noqa: ARG002 - this engine cannot be interrupted
    ) -> list[list[Candidate]]:
        """Find the nearest points of each of `(q, d)` vectors, best first, `limit` at most.

        Raises:
            ConfigError: The vectors do not fit the index, `limit` is below 1, or the filter cannot
                be used.
            StoreError: The index is closed, or the engine failed.
        """
        from qdrant_edge import Query

        check_limit(limit)
        queries = check_vectors(vectors, self._dim)
        chosen = edge_filter(filter)
        return self._ranked([Query.Nearest(query.tolist()) for query in queries], limit, chosen)

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

        This engine averages nothing by itself, so the average is taken here.

        Raises:
            ConfigError: An id is unknown, examples, limit or strategy do not fit, or the filter
                cannot be used.
            StoreError: The index is closed, or the engine failed.
        """
        from qdrant_edge import Query, RecommendQuery

        check_limit(limit)
        ids = check_examples(positive_ids, negative_ids, strategy)
        chosen = edge_filter(filter)
        positive, negative = example_vectors(self.vectors([*ids.positive, *ids.negative]), ids)
        middle = average(positive, negative, strategy)
        if middle is not None:
            query = Query.Nearest(middle.tolist())
        else:
            examples = RecommendQuery(positive.tolist(), negative.tolist())
            query = Query.RecommendBestScore(examples)
        excluded = [*ids.positive, *ids.negative]
        return self._ranked([query], limit, chosen, excluded)[0]

    def retrieve(
        self, image_ids: Sequence[str], *, tokens: bool = True
    ) -> dict[str, Mapping[str, Any]]:
        ids = check_ids(image_ids)
        with self._engine() as shard:
            records = shard.retrieve([*ids], edge_requests.shown(True, tokens), False)
        return {str(record.id): record.payload or {} for record in records}

    def vectors(self, image_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        ids = check_ids(image_ids)
        with self._engine() as shard:
            records = shard.retrieve([*ids], False, True)
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

        Other threads may write between pages, as the caller may; see `VectorIndex.scroll`.

        Raises:
            ConfigError: `batch_size` is below 1, or the filter cannot be used.
            StoreError: The index is closed, at once or before a page, or the engine failed.
        """
        from qdrant_edge import ScrollRequest

        check_batch_size(batch_size)
        chosen = edge_filter(filter)

        def fetch(start: Any) -> tuple[list[Record], Any]:
            with self._engine() as shard:
                return shard.scroll(
                    ScrollRequest(
                        offset=start,
                        limit=batch_size,
                        filter=chosen,
                        with_payload=edge_requests.shown(payload, tokens),
                        with_vector=vectors,
                    )
                )

        with self._engine():
            return pages(fetch, vectors=vectors)

    def count(self, filter: Filter | None = None) -> int:
        from qdrant_edge import CountRequest

        chosen = edge_filter(filter)
        with self._engine() as shard:
            return shard.count(CountRequest(filter=chosen))

    def payload_indexes(self) -> dict[str, str]:
        with self._engine() as shard:
            return kinds_of(shard.info().payload_schema)

    def _ranked(
        self,
        queries: Sequence[Query],
        limit: int,
        chosen: qdrant_edge.Filter | None,
        excluded: Sequence[str] = (),
    ) -> list[list[Candidate]]:
        from qdrant_edge import CountRequest

        with self._engine() as shard:
            # Counting would go through every point: 40 ms among a million.
            total = shard.info().points_count
            wanted = min(limit + SLACK, total)
            if wanted == 0:
                return [[] for _ in queries]
            reach = Reach.ALL
            if chosen is not None:
                reach = reach_of(shard.count(CountRequest(exact=False, filter=chosen)), total)
            if excluded:
                chosen = edge_requests.without(excluded, chosen)
            answers = shard.query_batch(edge_requests.best(queries, wanted, chosen, reach))
        return [
            rank(((str(hit.id), hit.score, hit.payload or {}) for hit in hits), limit)
            for hits in answers
        ]

    @contextmanager
    def _engine(self) -> Iterator[EdgeShard]:
        shard = self._shard
        closed = f"the index at {self._folder} is closed; open it again"
        if shard is None:
            raise StoreError(closed)
        try:
            with reporting(self._folder):
                yield shard
        except StoreError as error:
            if self._shard is None:  # another thread closed it meanwhile
                raise StoreError(closed) from error
            raise
