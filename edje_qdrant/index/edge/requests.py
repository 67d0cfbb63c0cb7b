"""What the embedded engine is asked, in its own words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edje_qdrant.index import hnsw
from edje_qdrant.index.filters.field_paths import TOKEN_BYTES
from edje_qdrant.index.hnsw import Reach
from edje_qdrant.index.payload_indexes import edge_schema
from edje_qdrant.index.validate import CheckedPoint

if TYPE_CHECKING:
    from qdrant_edge import (
        EdgeConfig,
        Filter,
        PayloadSelector,
        Query,
        QueryBatchRequest,
        UpdateOperation,
    )

__all__ = [
    "best",
    "config",
    "index_field",
    "remove_keys",
    "set_payload",
    "shown",
    "upsert",
    "without",
]


def config(dim: int) -> EdgeConfig:
    """Return the settings of a new shard of `dim`-wide vectors."""
    from qdrant_edge import (
        Distance,
        EdgeConfig,
        EdgeOptimizersConfig,
        EdgeVectorParams,
        HnswIndexConfig,
    )

    return EdgeConfig(
        vectors=EdgeVectorParams(size=dim, distance=Distance.Cosine),
        hnsw_config=HnswIndexConfig(
            m=hnsw.LINKS,
            ef_construct=hnsw.BUILD_WIDTH,
            full_scan_threshold=hnsw.SCAN_KILOBYTES,
        ),
        optimizers=EdgeOptimizersConfig(indexing_threshold=hnsw.SCAN_KILOBYTES),
    )


def shown(payload: bool, tokens: bool) -> bool | PayloadSelector:
    """Return which part of a payload to read."""
    from qdrant_edge import PayloadSelector

    return PayloadSelector.Exclude([TOKEN_BYTES]) if payload and not tokens else payload


def best(
    queries: Sequence[Query], wanted: int, chosen: Filter | None, reach: Reach
) -> QueryBatchRequest:
    """Ask for the `wanted` points that fit each query best, of those that the filter chooses."""
    from qdrant_edge import AcornSearchParams, QueryBatchRequest, QueryRequest, SearchParams

    params = SearchParams(
        hnsw_ef=hnsw.search_width(wanted),
        exact=reach is Reach.FEW,
        acorn=AcornSearchParams(True, 1.0) if reach is Reach.MOST else None,
    )
    return QueryBatchRequest(
        [
            QueryRequest(
                limit=wanted,
                query=query,
                filter=chosen,
                with_payload=shown(payload=True, tokens=False),
                params=params,
            )
            for query in queries
        ]
    )


def without(ids: Sequence[str], chosen: Filter | None) -> Filter:
    """Leave points out of what a filter chooses."""
    from qdrant_edge import Filter, HasIdCondition

    return Filter(must=[chosen] if chosen else None, must_not=[HasIdCondition({*ids})])


def upsert(points: Sequence[CheckedPoint]) -> UpdateOperation:
    """Write points whole."""
    from qdrant_edge import Point, UpdateOperation

    return UpdateOperation.upsert_points([Point(p.id, p.vector, p.payload) for p in points])


def set_payload(ids: Sequence[str], payload: dict[str, Any]) -> UpdateOperation:
    """Set the payload's keys in those of the points that are stored."""
    from qdrant_edge import UpdateOperation

    return UpdateOperation.set_payload_by_filter(_stored(ids), payload)


def remove_keys(ids: Sequence[str], paths: list[str]) -> UpdateOperation:
    """Remove keys from those of the points that are stored."""
    from qdrant_edge import UpdateOperation

    return UpdateOperation.delete_payload_by_filter(_stored(ids), paths)


def index_field(path: str, kind: str) -> UpdateOperation:
    """Index a payload field."""
    from qdrant_edge import UpdateOperation

    return UpdateOperation.create_field_index(path, edge_schema(kind))


def _stored(ids: Sequence[str]) -> Filter:
    """Name points in a way that allows for unknown ones; in a plain list they are an error."""
    from qdrant_edge import Filter, HasIdCondition

    return Filter(must=[HasIdCondition({*ids})])
