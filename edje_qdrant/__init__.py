"""Find pictures by text in two stages: vector search, then a joint encoder over stored tokens.

The names below are loaded when they are first used: importing the package itself loads neither
torch nor a vector engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edje_qdrant.version import __version__

if TYPE_CHECKING:
    from edje_qdrant.collection import ImageCollection
    from edje_qdrant.contract import TokenContract
    from edje_qdrant.errors import (
        CheckpointError,
        CollectionLockedError,
        CollectionNotFoundError,
        ConfigError,
        ContractMismatchError,
        EdjeError,
        EngineUnavailableError,
        ImageReadError,
        MissingExtraError,
        StoreError,
        TokensCorruptError,
        TokensNotFoundError,
    )
    from edje_qdrant.explain import explain_match
    from edje_qdrant.explanation import Explanation
    from edje_qdrant.heat_map import draw_explanation, draw_heat
    from edje_qdrant.ingest import ingest_images
    from edje_qdrant.model import (
        EDJEConfig,
        EDJEModel,
        EDJEModelForIndexing,
        EDJEModelForRanking,
    )
    from edje_qdrant.reranker import Reranker
    from edje_qdrant.retriever import TwoStageRetriever
    from edje_qdrant.types import (
        Candidate,
        FailedImage,
        ImageEncoding,
        IngestReport,
        SearchHit,
        SearchResult,
        Timings,
    )

__all__ = [
    "Candidate",
    "CheckpointError",
    "CollectionLockedError",
    "CollectionNotFoundError",
    "ConfigError",
    "ContractMismatchError",
    "EDJEConfig",
    "EDJEModel",
    "EDJEModelForIndexing",
    "EDJEModelForRanking",
    "EdjeError",
    "EngineUnavailableError",
    "Explanation",
    "FailedImage",
    "ImageCollection",
    "ImageEncoding",
    "ImageReadError",
    "IngestReport",
    "MissingExtraError",
    "Reranker",
    "SearchHit",
    "SearchResult",
    "StoreError",
    "Timings",
    "TokenContract",
    "TokensCorruptError",
    "TokensNotFoundError",
    "TwoStageRetriever",
    "__version__",
    "draw_explanation",
    "draw_heat",
    "explain_match",
    "ingest_images",
]

_HOMES = {
    "ImageCollection": "collection",
    "TokenContract": "contract",
    "explain_match": "explain",
    "Explanation": "explanation",
    "draw_explanation": "heat_map",
    "draw_heat": "heat_map",
    "ingest_images": "ingest",
    "EDJEConfig": "model",
    "EDJEModel": "model",
    "EDJEModelForIndexing": "model",
    "EDJEModelForRanking": "model",
    "Reranker": "reranker",
    "TwoStageRetriever": "retriever",
    "Candidate": "types",
    "FailedImage": "types",
    "ImageEncoding": "types",
    "IngestReport": "types",
    "SearchHit": "types",
    "SearchResult": "types",
    "Timings": "types",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    home = _HOMES.get(name, "errors")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
