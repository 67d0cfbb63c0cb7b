"""What the embedded engine is asked, in its own words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.index import hnsw
from edje_qdrant.index.checks import CheckedPoint
from edje_qdrant.index.paths import TOKEN_BYTES

if TYPE_CHECKING:
    from qdrant_edge import EdgeConfig, Filter, PayloadSelector, QueryBatchRequest, UpdateOperation

__all__ = ["config", "nearest", "remove_keys", "set_payload", "shown", "upsert"]


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


def nearest(queries: NDArray[np.float32], wanted: int) -> QueryBatchRequest:
    """Ask for the `wanted` points nearest to each of `(q, d)` vectors."""
    from qdrant_edge import Query, QueryBatchRequest, QueryRequest, SearchParams

    return QueryBatchRequest(
        [
            QueryRequest(
                limit=wanted,
                query=Query.Nearest(query.tolist()),
                with_payload=shown(payload=True, tokens=False),
                params=SearchParams(hnsw_ef=hnsw.search_width(wanted)),
            )
            for query in queries
        ]
    )


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


def _stored(ids: Sequence[str]) -> Filter:
    """Name points in a way that allows for unknown ones; in a plain list they are an error."""
    from qdrant_edge import Filter, HasIdCondition

    return Filter(must=[HasIdCondition({*ids})])
