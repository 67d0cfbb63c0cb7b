"""What a Qdrant server is asked, in its client's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.index import hnsw
from edje_qdrant.index.paths import TOKEN_BYTES

if TYPE_CHECKING:
    from qdrant_client import models

__all__ = ["nearest", "setting_payload", "shown", "stored"]


def shown(payload: bool, tokens: bool) -> bool | models.PayloadSelectorExclude:
    """Return which part of a payload to read."""
    from qdrant_client import models

    if not payload or tokens:
        return payload
    return models.PayloadSelectorExclude(exclude=[TOKEN_BYTES])


def nearest(
    queries: NDArray[np.float32], wanted: int, *, walk: bool = True
) -> list[models.QueryRequest]:
    """Ask for the `wanted` points nearest to each of `(q, d)` vectors.

    `walk` is False where there is no graph to walk.
    """
    from qdrant_client import models

    params = models.SearchParams(hnsw_ef=hnsw.search_width(wanted)) if walk else None
    return [
        models.QueryRequest(
            query=query.tolist(),
            limit=wanted,
            with_payload=shown(payload=True, tokens=False),
            params=params,
        )
        for query in queries
    ]


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
