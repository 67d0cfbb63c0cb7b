"""Qdrant Edge: the embedded engine, in this process, in a folder of this machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.files import hidden_folder
from edje_qdrant.index import hnsw
from edje_qdrant.index.backend import FusedHit, Hits, as_points, fused_hits, word_vectors
from edje_qdrant.index.batches import by_payload
from edje_qdrant.index.edge.filter import edge_filter
from edje_qdrant.index.filters.field_paths import TOKEN_BYTES
from edje_qdrant.index.filters.filter import Filter
from edje_qdrant.index.folder import SHARD, require_space
from edje_qdrant.index.folder_backend import FolderBackend
from edje_qdrant.index.moments import moment_text
from edje_qdrant.index.newest import Dated, NewestPage, merged, moment_of
from edje_qdrant.index.payload_indexes import FACET_KINDS, edge_schema, kinds_of
from edje_qdrant.index.validate import CheckedPayload, CheckedPoint
from edje_qdrant.index.words import RRF_CONSTANT, WORDS_KEY, WORDS_VECTOR, WordVector
from edje_qdrant.types import Point

if TYPE_CHECKING:
    import qdrant_edge
    from qdrant_edge import (
        EdgeShard,
        PayloadSelector,
        Query,
        Record,
        SearchParams,
        SparseVector,
        UpdateMode,
    )

__all__ = ["EdgeBackend"]


class EdgeBackend(FolderBackend["EdgeShard"]):
    """An Edge shard.

    Threads may search and write at the same time, but the engine holds Python's interpreter lock
    while it works: `optimize` on a large index stops every other thread.
    """

    name = "edge"
    subfolder = SHARD

    @staticmethod
    def _create(folder: Path, dim: int, *, words: bool) -> None:
        from qdrant_edge import (
            Distance,
            EdgeConfig,
            EdgeOptimizersConfig,
            EdgeShard,
            EdgeSparseVectorParams,
            EdgeVectorParams,
            HnswIndexConfig,
            Modifier,
        )

        config = EdgeConfig(
            vectors=EdgeVectorParams(size=dim, distance=Distance.Cosine),
            sparse_vectors={WORDS_VECTOR: EdgeSparseVectorParams(modifier=Modifier.Idf)}
            if words
            else None,
            hnsw_config=HnswIndexConfig(
                m=hnsw.LINKS,
                ef_construct=hnsw.BUILD_WIDTH,
                full_scan_threshold=hnsw.SCAN_KILOBYTES,
            ),
            optimizers=EdgeOptimizersConfig(indexing_threshold=hnsw.SCAN_KILOBYTES),
        )
        EdgeShard.create(str(folder), config).close()

    @staticmethod
    def _load(folder: Path, dim: int, *, read_only: bool) -> EdgeShard:  # noqa: ARG004 - in the files
        from qdrant_edge import EdgeShard

        return EdgeShard.load(str(folder))

    @staticmethod
    @contextmanager
    def _readable(folder: Path) -> Iterator[Path]:
        """Yield a temporary copy: the engine opens all its files for writing."""
        mark = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:16]
        temporary = Path(tempfile.gettempdir())
        require_space(temporary, sum(p.stat().st_size for p in folder.rglob("*")))
        with hidden_folder(temporary / f"edje-index-{mark}") as scratch:
            copied = scratch / folder.name
            copied.mkdir()
            for path in sorted(folder.rglob("*")):
                target = copied / path.relative_to(folder)
                # Without their modes, which may forbid to write.
                if path.is_dir():
                    target.mkdir()
                else:
                    shutil.copyfile(path, target)
            yield copied

    def translate(
        self,
        filter: Filter | None,
        timeout: float | None = None,  # noqa: ARG002 - nothing is waited for
    ) -> qdrant_edge.Filter | None:
        return edge_filter(filter, self.payload_indexes)

    def nearest(
        self,
        queries: NDArray[np.float32],
        wanted: int,
        chosen: qdrant_edge.Filter | None,
        timeout: float | None,  # noqa: ARG002 - this engine cannot be interrupted
    ) -> list[Hits]:
        from qdrant_edge import Query

        return self._query([Query.Nearest(query.tolist()) for query in queries], wanted, chosen)

    def nearest_or_words(
        self,
        queries: NDArray[np.float32],
        words: Sequence[WordVector],
        weight: float,
        wanted: int,
        chosen: qdrant_edge.Filter | None,
        timeout: float | None,  # noqa: ARG002 - this engine cannot be interrupted
    ) -> list[list[FusedHit]]:
        from qdrant_edge import Fusion, Prefetch, Query, QueryBatchRequest, QueryRequest

        fusion: Any = Fusion.Rrf(RRF_CONSTANT, [1.0, weight])  # typed as no `Fusion`
        selected = _selected(payload=True, tokens=False)
        requests: list[QueryRequest] = []
        with self._using() as shard:
            wanted = min(wanted, shard.info().points_count)
            if wanted == 0:
                return [[] for _ in queries]
            params = self._params(shard, wanted, chosen)
            for vector, own in zip(queries.tolist(), words, strict=True):
                nearest = Query.Nearest(vector)
                by_words = Query.Nearest(_sparse(own), using=WORDS_VECTOR)
                both = [
                    Prefetch(limit=wanted, query=nearest, filter=chosen, params=params),
                    Prefetch(limit=wanted, query=by_words, filter=chosen),
                ]
                fused = Prefetch(limit=wanted, query=fusion, prefetches=both)
                requests += [
                    QueryRequest(
                        limit=wanted, query=fusion, prefetches=both, with_payload=selected
                    ),
                    # Cosine and BM25 score of each point that the fusion finds, whichever way.
                    QueryRequest(limit=wanted, query=nearest, prefetches=[fused]),
                    QueryRequest(limit=wanted, query=by_words, prefetches=[fused]),
                ]
            answers = shard.query_batch(QueryBatchRequest(requests))
        return fused_hits(answers, queries, lambda ids: self.fetch(ids, vectors=True))

    def create_words(self) -> None:
        from qdrant_edge import Modifier, UpdateOperation

        with self._using() as shard:
            require_space(self._folder)
            # Does nothing where there is one already.
            shard.update(UpdateOperation.create_sparse_vector(WORDS_VECTOR, Modifier.Idf))

    def drop_words(self) -> None:
        from qdrant_edge import UpdateOperation

        with self._using() as shard:
            require_space(self._folder)
            # Does nothing where there is none.
            shard.update(UpdateOperation.delete_vector_name(WORDS_VECTOR))

    def set_words(self, words: Mapping[str, WordVector]) -> None:
        from qdrant_edge import PointVectors, UpdateOperation

        with self._using() as shard:
            require_space(self._folder)
            vectors = [PointVectors(i, {WORDS_VECTOR: _sparse(own)}) for i, own in words.items()]
            shard.update(UpdateOperation.update_vectors(vectors))

    def fetch_words(self, ids: Sequence[str]) -> dict[str, WordVector]:
        with self._using() as shard:
            return word_vectors(shard.retrieve([*ids], False, [WORDS_VECTOR]))

    def best_score(
        self,
        positive: NDArray[np.float32],
        negative: NDArray[np.float32],
        wanted: int,
        chosen: qdrant_edge.Filter | None,
    ) -> Hits:
        from qdrant_edge import Query, RecommendQuery

        examples = RecommendQuery(positive.tolist(), negative.tolist())
        return self._query([Query.RecommendBestScore(examples)], wanted, chosen)[0]

    def fetch(
        self, ids: Sequence[str], *, payload: bool = False, tokens: bool = False,
        vectors: bool = False,
    ) -> list[Point]:  # fmt: skip
        with self._using() as shard:
            wanted = self._embeddings(vectors)
            records = shard.retrieve([*ids], _selected(payload, tokens), wanted)
        return as_points(records, vectors=vectors)

    def page(
        self,
        start: Any,
        size: int,
        chosen: qdrant_edge.Filter | None,
        *,
        payload: bool,
        tokens: bool,
        vectors: bool,
    ) -> tuple[list[Point], Any]:
        from qdrant_edge import ScrollRequest

        request = ScrollRequest(
            offset=start,
            limit=size,
            filter=chosen,
            with_payload=_selected(payload, tokens),
            with_vector=self._embeddings(vectors),
        )
        with self._using() as shard:
            records, following = shard.scroll(request)
        return as_points(records, vectors=vectors), following

    def newest(
        self, fields: Sequence[str], start: Any, size: int, filter: Filter | None
    ) -> NewestPage:
        return merged(self, fields, start, size, filter)

    def latest(
        self, path: str, before: int | None, size: int, chosen: qdrant_edge.Filter | None
    ) -> tuple[list[Dated], bool]:
        from qdrant_edge import Direction, OrderBy, ScrollRequest

        start = None if before is None else moment_text(moment_of(before - 1))
        request = ScrollRequest(
            limit=size,
            filter=chosen,
            with_payload=_selected(payload=True, tokens=False),
            with_vector=False,
            order_by=OrderBy(path, Direction.Desc, start_from=start),
        )
        with self._using() as shard:
            records, _ = shard.scroll(request)
        points = as_points(records, vectors=False)
        dated = [Dated(int(r.order_value or 0), p) for r, p in zip(records, points, strict=True)]
        return dated, len(dated) < size

    def write(self, points: Sequence[CheckedPoint]) -> None:
        from qdrant_edge import UpdateMode

        self._upsert(points, UpdateMode.Upsert)

    def update(self, points: Sequence[CheckedPoint]) -> None:
        from qdrant_edge import UpdateMode

        self._upsert(points, UpdateMode.UpdateOnly)

    def _upsert(self, points: Sequence[CheckedPoint], mode: UpdateMode) -> None:
        from qdrant_edge import Point, UpdateOperation

        made = [Point(p.id, _vector(p), p.payload) for p in points]
        with self._using() as shard:
            require_space(self._folder)
            shard.update(UpdateOperation.upsert_points(made, update_mode=mode))

    def set_payload(self, payloads: Sequence[CheckedPayload]) -> None:
        from qdrant_edge import UpdateOperation

        with self._using() as shard:
            require_space(self._folder)
            for ids, payload in by_payload(payloads):
                shard.update(UpdateOperation.set_payload_by_filter(_stored(ids), payload))

    def remove_keys(self, ids: Sequence[str], paths: Sequence[str]) -> None:
        from qdrant_edge import UpdateOperation

        with self._using() as shard:
            shard.update(UpdateOperation.delete_payload_by_filter(_stored(ids), [*paths]))

    def delete(self, ids: Sequence[str]) -> None:
        from qdrant_edge import UpdateOperation

        with self._using() as shard:
            if ids:
                shard.update(UpdateOperation.delete_points([*ids]))

    def delete_matching(self, chosen: qdrant_edge.Filter) -> None:
        from qdrant_edge import UpdateOperation

        with self._using() as shard:
            shard.update(UpdateOperation.delete_points_by_filter(chosen))

    def count(self, chosen: qdrant_edge.Filter | None) -> int:
        from qdrant_edge import CountRequest

        with self._using() as shard:
            return shard.count(CountRequest(filter=chosen))

    def create_payload_index(self, path: str, kind: str) -> None:
        from qdrant_edge import UpdateOperation

        # The graph gets links for the field as well if `optimize` builds it later.
        with self._using() as shard:
            shard.update(UpdateOperation.create_field_index(path, edge_schema(kind)))

    def payload_indexes(self) -> dict[str, str]:
        with self._using() as shard:
            return kinds_of(shard.info().payload_schema)

    def facet(self, path: str, limit: int) -> list[tuple[Any, int]] | None:
        from qdrant_edge import FacetRequest

        with self._using() as shard:
            if kinds_of(shard.info().payload_schema).get(path) not in FACET_KINDS:
                return None
            return [(hit.value, hit.count) for hit in shard.facet(FacetRequest(path, limit)).hits]

    def flush(self) -> None:
        # The engine also writes a log, from which it usually restores later writes; nothing here
        # relies on that.
        with self._using() as shard:
            shard.flush()

    def optimize(self) -> None:
        with self._using() as shard:
            require_space(self._folder, _allocated(self._folder / SHARD))
            shard.optimize()

    def _before_close(self, engine: EdgeShard) -> None:
        engine.flush()

    def _query(
        self, queries: Sequence[Query], wanted: int, chosen: qdrant_edge.Filter | None
    ) -> list[Hits]:
        from qdrant_edge import QueryBatchRequest, QueryRequest

        with self._using() as shard:
            # Counting would go through every point: 40 ms among a million.
            wanted = min(wanted, shard.info().points_count)
            if wanted == 0:
                return [[] for _ in queries]
            params = self._params(shard, wanted, chosen)
            selected = _selected(payload=True, tokens=False)
            several = len(queries) > 1
            requests = [
                QueryRequest(
                    limit=wanted,
                    query=query,
                    filter=chosen,
                    with_payload=False if several else selected,
                    params=params,
                )
                for query in queries
            ]
            answers = shard.query_batch(QueryBatchRequest(requests))
            if not several:
                return [*answers]
            # Queries find the same points; reading a payload takes longer than finding a point.
            ids = [[str(hit.id) for hit in answer] for answer in answers]
            distinct = {*chain.from_iterable(ids)}
            stored = {str(r.id): r for r in shard.retrieve([*distinct], selected, False)}
        return [
            [
                _Stored(point_id, hit.score, stored[point_id])
                for point_id, hit in zip(own, answer, strict=True)
                if point_id in stored  # unless it was deleted since
            ]
            for own, answer in zip(ids, answers, strict=True)
        ]

    @staticmethod
    def _params(shard: EdgeShard, wanted: int, chosen: qdrant_edge.Filter | None) -> SearchParams:
        """Return how to search for the `wanted` nearest of the chosen points."""
        from qdrant_edge import AcornSearchParams, CountRequest, SearchParams

        reach = hnsw.Reach.ALL
        if chosen is not None:
            matching = shard.count(CountRequest(exact=False, filter=chosen))
            reach = hnsw.reach_of(matching, shard.info().points_count)
        return SearchParams(
            hnsw_ef=hnsw.search_width(wanted),
            exact=reach is hnsw.Reach.FEW,
            acorn=AcornSearchParams(True, 1.0) if reach is hnsw.Reach.MOST else None,
        )

    def _embeddings(self, wanted: bool) -> bool | list[str]:
        """Return which vectors to read: the embeddings, without words beside them."""
        return [""] if wanted and WORDS_KEY in self.metadata else wanted


class _Stored(NamedTuple):
    """A point found, and the record with its payload, which queries may share."""

    id: str
    score: float
    record: Record

    @property
    def payload(self) -> Any:
        return self.record.payload


def _selected(payload: bool, tokens: bool) -> bool | PayloadSelector:
    """Return which part of a payload to read."""
    from qdrant_edge import PayloadSelector

    return PayloadSelector.Exclude([TOKEN_BYTES]) if payload and not tokens else payload


def _sparse(words: WordVector) -> SparseVector:
    from qdrant_edge import SparseVector

    return SparseVector(words.indices, words.values)


def _vector(point: CheckedPoint) -> Any:
    """Return the vectors of a point to write."""
    if not point.words:  # also one without text, which would count among the texts
        return point.vector
    return {"": point.vector, WORDS_VECTOR: _sparse(point.words)}


def _stored(ids: Sequence[str]) -> qdrant_edge.Filter:
    """Name points by filter, which allows unknown ids; in a plain list they are an error."""
    from qdrant_edge import Filter, HasIdCondition

    return Filter(must=[HasIdCondition({*ids})])


def _allocated(folder: Path) -> int:
    """Return the bytes that a folder's files take on the disk, holes left out."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # the engine may be removing files
            status = path.stat()
            # Windows does not count blocks.
            total += 512 * getattr(status, "st_blocks", -(-status.st_size // 512))
    return total
