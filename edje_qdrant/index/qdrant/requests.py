"""What a Qdrant server is asked, in its client's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.index import hnsw
from edje_qdrant.index.filters.field_paths import TOKEN_BYTES
from edje_qdrant.index.hnsw import Reach

if TYPE_CHECKING:
    from qdrant_client import models

__all__ = ["best", "like", "setting_payload", "shown", "stored", "without"]


def shown(payload: bool, tokens: bool) -> bool | models.PayloadSelectorExclude:
    """Return which part of a payload to read."""
    from qdrant_client import models

    if not payload or tokens:
        return payload
    return models.PayloadSelectorExclude(exclude=[TOKEN_BYTES])


def best(
    queries: Sequence[Any],
    wanted: int,
    chosen: models.Filter | None,
    reach: Reach | None,
    oversampling: float | None,
) -> list[models.QueryRequest]:
    """Ask for the `wanted` points that fit each query best, of those that the filter chooses.

    Args:
        queries: Vectors, or what else a query may be.
        wanted: How many points for each.
        chosen: What may be found.
        reach: How to search; None where there is no graph to walk.
        oversampling: How many more candidates to take by quantized vectors, and compare by the
            vectors themselves; None where they are not quantized.
    """
    from qdrant_client import models

    params = None
    if reach is not None:
        params = models.SearchParams(
            hnsw_ef=hnsw.search_width(wanted),
            exact=True if reach is Reach.FEW else None,
            acorn=models.AcornSearchParams(enable=True, max_selectivity=1.0)
            if reach is Reach.MOST
            else None,
            quantization=None
            if oversampling is None
            else models.QuantizationSearchParams(rescore=True, oversampling=oversampling),
        )
    return [
        models.QueryRequest(
            query=query,
            limit=wanted,
            filter=chosen,
            with_payload=shown(payload=True, tokens=False),
            params=params,
        )
        for query in queries
    ]


def like(
    positive: NDArray[np.float32], negative: NDArray[np.float32], strategy: str
) -> models.RecommendQuery:
    """Ask for what is like the `(p, d)` examples and unlike the `(n, d)` ones."""
    from qdrant_client import models

    return models.RecommendQuery(
        recommend=models.RecommendInput(
            positive=positive.tolist(),
            negative=negative.tolist(),
            strategy=models.RecommendStrategy(strategy),
        )
    )


def without(ids: Sequence[str], chosen: models.Filter | None) -> models.Filter:
    """Leave points out of what a filter chooses."""
    from qdrant_client import models

    left_out = models.HasIdCondition(has_id=[*ids])
    return models.Filter(must=[chosen] if chosen else None, must_not=[left_out])


def setting_payload(
    payload: dict[str, Any], chosen: models.Filter | list[str]
) -> models.SetPayloadOperation:
    """Set the payload's keys in points, given by filter or by id."""
    from qdrant_client import models

    if isinstance(chosen, list):
        return models.SetPayloadOperation(
            set_payload=models.SetPayload(payload=payload, points=[*chosen])
        )
    return models.SetPayloadOperation(set_payload=models.SetPayload(payload=payload, filter=chosen))


def stored(ids: Sequence[str]) -> models.Filter:
    """Name points in a way that allows for unknown ones; in a plain list they are an error."""
    from qdrant_client import models

    return models.Filter(must=[models.HasIdCondition(has_id=[*ids])])
