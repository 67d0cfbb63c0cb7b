"""Requests to a Qdrant server, as its client's models."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.index import hnsw
from edje_qdrant.index.filters.field_paths import TOKEN_BYTES, TOKENS_KEY
from edje_qdrant.index.hnsw import Reach
from edje_qdrant.index.qdrant.strict_mode import Limits, least
from edje_qdrant.index.validate import CheckedPoint
from edje_qdrant.index.words import RRF_CONSTANT, WORDS_VECTOR, WordVector

if TYPE_CHECKING:
    from qdrant_client import models

__all__ = [
    "best",
    "best_or_words",
    "best_score",
    "features",
    "new_words",
    "point",
    "search_params",
    "selected",
    "setting_payload",
    "setting_words",
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


def best_or_words(
    query: list[float],
    words: WordVector,
    weight: float,
    wanted: int,
    chosen: models.Filter | None,
    params: models.SearchParams | None,
) -> list[models.QueryRequest]:
    """Return three requests: for the `wanted` best, and for their cosines and BM25 scores.

    Args:
        query: The query's embedding.
        words: The query's words.
        weight: How much a rank among the words counts, next to one among the embeddings.
        wanted: Points to find.
        chosen: Which points may be found.
        params: How to search the embeddings.
    """
    from qdrant_client import models

    both = [
        models.Prefetch(query=query, limit=wanted, filter=chosen, params=params),
        models.Prefetch(query=_sparse(words), using=WORDS_VECTOR, limit=wanted, filter=chosen),
    ]
    fusion = models.RrfQuery(rrf=models.Rrf(k=RRF_CONSTANT, weights=[1.0, weight]))
    fused = models.Prefetch(prefetch=both, query=fusion, limit=wanted)
    found = models.QueryRequest(
        prefetch=both,
        query=fusion,
        limit=wanted,
        with_payload=selected(payload=True, tokens=False),
    )
    cosines = models.QueryRequest(prefetch=fused, query=query, limit=wanted, with_payload=False)
    matched = models.QueryRequest(
        prefetch=fused, query=both[1].query, using=WORDS_VECTOR, limit=wanted, with_payload=False
    )
    return [found, cosines, matched]


def point(checked: CheckedPoint) -> models.PointStruct:
    """Return a point to write."""
    from qdrant_client import models

    vector: Any = checked.vector
    if checked.words:  # one without text would count among the texts
        vector = {"": vector, WORDS_VECTOR: _sparse(checked.words)}
    return models.PointStruct(id=checked.id, vector=vector, payload=checked.payload)


def setting_words(words: Mapping[str, WordVector]) -> models.UpdateVectorsOperation:
    """Return the operation that replaces the words of points, id -> words."""
    from qdrant_client import models

    vectors = [
        models.PointVectors(id=each, vector={WORDS_VECTOR: _sparse(own)})
        for each, own in words.items()
    ]
    return models.UpdateVectorsOperation(update_vectors=models.UpdateVectors(points=vectors))


def new_words() -> models.SparseVectorParams:
    """Return the settings of the words' sparse vector."""
    from qdrant_client import models

    return models.SparseVectorParams(modifier=models.Modifier.IDF)


def _sparse(words: WordVector) -> models.SparseVector:
    from qdrant_client import models

    return models.SparseVector(indices=words.indices, values=words.values)


def features(request: models.QueryRequest) -> list[str]:
    """Return what a search asks of a server's version: keys of `versions.NEEDS`."""
    from pydantic import BaseModel

    prefetches = request.prefetch if isinstance(request.prefetch, list) else []
    parts: list[Any] = [request, request.query]
    for params in (request.params, *(each.params for each in prefetches)):
        parts += [params and params.acorn, params and params.quantization]
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
