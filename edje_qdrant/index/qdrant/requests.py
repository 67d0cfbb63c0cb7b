"""Requests to a Qdrant server, as its client's models."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.index import hnsw
from edje_qdrant.index.filters.field_paths import TOKEN_BYTES, TOKENS_KEY
from edje_qdrant.index.hnsw import Reach
from edje_qdrant.index.qdrant.strict_mode import Limits, least

if TYPE_CHECKING:
    from qdrant_client import models

__all__ = [
    "best",
    "best_score",
    "features",
    "search_params",
    "selected",
    "setting_payload",
    "stored",
    "without",
]


def selected(payload: bool, tokens: bool) -> bool | models.PayloadSelectorExclude:
    """Return which part of a payload to read."""
    from qdrant_client import models

    if not payload or tokens:
        return payload
    return models.PayloadSelectorExclude(exclude=[TOKEN_BYTES])


def search_params(
    wanted: int, reach: Reach | None, oversampling: float | None, limits: Limits
) -> models.SearchParams | None:
    """Return how a server is to search.

    Args:
        wanted: Points for each query.
        reach: How to search; None where there is no graph.
        oversampling: Candidates by quantized vectors for each wanted point, to be rescored by the
            original vectors; None where vectors are not quantized.
        limits: What the collection allows.
    """
    from qdrant_client import models

    if reach is None:
        return None
    scanned = reach is Reach.FEW and limits.exact
    return models.SearchParams(
        hnsw_ef=least(hnsw.search_width(wanted), limits.hnsw_ef),
        exact=True if scanned else None,
        acorn=models.AcornSearchParams(enable=True, max_selectivity=1.0)
        if reach is not Reach.ALL and not scanned
        else None,
        quantization=None
        if oversampling is None
        else models.QuantizationSearchParams(
            rescore=True, oversampling=least(oversampling, limits.oversampling)
        ),
    )


def best(
    queries: Sequence[Any],
    wanted: int,
    chosen: models.Filter | None,
    params: models.SearchParams | None,
) -> list[models.QueryRequest]:
    """Return requests for the `wanted` best of the chosen points for each query.

    Args:
        queries: Vectors, or other queries of the client's.
        wanted: Points for each query.
        chosen: Which points may be found.
        params: How to search.
    """
    from qdrant_client import models

    return [
        models.QueryRequest(
            query=query,
            limit=wanted,
            filter=chosen,
            with_payload=selected(payload=True, tokens=False),
            params=params,
        )
        for query in queries
    ]


def features(request: models.QueryRequest) -> list[str]:
    """Return what a search asks of a server's version: keys of `versions.NEEDS`."""
    from pydantic import BaseModel

    params = request.params
    parts = [request, request.query, params and params.acorn, params and params.quantization]
    return [type(part).__name__ for part in parts if isinstance(part, BaseModel)]


def best_score(
    positive: NDArray[np.float32], negative: NDArray[np.float32]
) -> models.RecommendQuery:
    """Return a query by `best_score` for `(p, d)` and `(n, d)` example vectors."""
    from qdrant_client import models

    return models.RecommendQuery(
        recommend=models.RecommendInput(
            positive=positive.tolist(),
            negative=negative.tolist(),
            strategy=models.RecommendStrategy.BEST_SCORE,
        )
    )


def setting_payload(
    payload: dict[str, Any], chosen: models.Filter | list[str]
) -> models.SetPayloadOperation:
    """Return the operation that sets payload keys in points given by filter or by id."""
    from qdrant_client import models

    if isinstance(chosen, list):
        return models.SetPayloadOperation(
            set_payload=models.SetPayload(payload=payload, points=[*chosen])
        )
    return models.SetPayloadOperation(set_payload=models.SetPayload(payload=payload, filter=chosen))


def stored(ids: Sequence[str]) -> models.Filter:
    """Name points by filter, which allows unknown ids; in a plain list they are an error."""
    from qdrant_client import models

    return models.Filter(must=[models.HasIdCondition(has_id=[*ids])])


def without(
    chosen: models.Filter | None, others: Collection[str], *, by_key: bool
) -> models.Filter:
    """Return a filter that also leaves out points of other programs.

    Args:
        chosen: Which points may be found.
        others: Ids of points of other programs.
        by_key: Leave out all points without the reserved key, for which a server reads the payload
            of each point that it compares; else the `others` alone.
    """
    from qdrant_client import models

    # Only integers need be named beside the key: a copy of a point under another id has the key.
    ids = [int(each) if each.isdecimal() else each for each in others]
    named: list[Any] = [each for each in ids if isinstance(each, int) or not by_key]
    left_out: list[Any] = [models.HasIdCondition(has_id=named)] if named else []
    if by_key:
        empty = models.PayloadField(key=TOKENS_KEY)
        left_out.append(models.IsEmptyCondition(is_empty=empty))
    return models.Filter(must=None if chosen is None else [chosen], must_not=left_out)
