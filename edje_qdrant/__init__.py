"""Find pictures by text in two stages: vector search, then a joint encoder over stored tokens.

The names below are loaded when they are first used: importing the package itself loads neither
torch nor a vector engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edje_qdrant.version import __version__

if TYPE_CHECKING:
    from edje_qdrant.attached import AttachedCollection, RankedPoint
    from edje_qdrant.attaching import attach_tokens, detach_tokens
    from edje_qdrant.batching import SearchBatcher
    from edje_qdrant.caption_collection import CaptionCollection
    from edje_qdrant.caption_retriever import CaptionHit, CaptionResult, CaptionRetriever
    from edje_qdrant.collection import ImageCollection
    from edje_qdrant.contract import TokenContract
    from edje_qdrant.errors import (
        BusyError,
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
        WorkerDiedError,
    )
    from edje_qdrant.explain import explain_match
    from edje_qdrant.explanation import Explanation
    from edje_qdrant.heat_map import draw_explanation, draw_heat
    from edje_qdrant.index import QdrantSettings
    from edje_qdrant.ingest import ingest_images
    from edje_qdrant.matching import (
        LabelScore,
        TextMatch,
        classify,
        classify_batch,
        match_texts,
    )
    from edje_qdrant.model import (
        EDJEConfig,
        EDJEModel,
        EDJEModelForIndexing,
        EDJEModelForRanking,
    )
    from edje_qdrant.pair_scoring import PairReport, score_pairs_file
    from edje_qdrant.reranker import Reranker
    from edje_qdrant.retriever import TwoStageRetriever
    from edje_qdrant.token_cache import DeviceTokenCache
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
    "AttachedCollection",
    "BusyError",
    "Candidate",
    "CaptionCollection",
    "CaptionHit",
    "CaptionResult",
    "CaptionRetriever",
    "CheckpointError",
    "CollectionLockedError",
    "CollectionNotFoundError",
    "ConfigError",
    "ContractMismatchError",
    "DeviceTokenCache",
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
    "LabelScore",
    "MissingExtraError",
    "PairReport",
    "QdrantSettings",
    "RankedPoint",
    "Reranker",
    "SearchBatcher",
    "SearchHit",
    "SearchResult",
    "StoreError",
    "TextMatch",
    "Timings",
    "TokenContract",
    "TokensCorruptError",
    "TokensNotFoundError",
    "TwoStageRetriever",
    "WorkerDiedError",
    "__version__",
    "attach_tokens",
    "classify",
    "classify_batch",
    "detach_tokens",
    "draw_explanation",
    "draw_heat",
    "explain_match",
    "ingest_images",
    "match_texts",
    "score_pairs_file",
]

_HOMES = {
    "SearchBatcher": "batching",
    "AttachedCollection": "attached",
    "RankedPoint": "attached",
    "attach_tokens": "attaching",
    "detach_tokens": "attaching",
    "CaptionCollection": "caption_collection",
    "CaptionHit": "caption_retriever",
    "CaptionResult": "caption_retriever",
    "CaptionRetriever": "caption_retriever",
    "ImageCollection": "collection",
    "TokenContract": "contract",
    "explain_match": "explain",
    "Explanation": "explanation",
    "draw_explanation": "heat_map",
    "draw_heat": "heat_map",
    "QdrantSettings": "index",
    "ingest_images": "ingest",
    "LabelScore": "matching",
    "TextMatch": "matching",
    "classify": "matching",
    "classify_batch": "matching",
    "match_texts": "matching",
    "EDJEConfig": "model",
    "EDJEModel": "model",
    "EDJEModelForIndexing": "model",
    "EDJEModelForRanking": "model",
    "PairReport": "pair_scoring",
    "score_pairs_file": "pair_scoring",
    "Reranker": "reranker",
    "TwoStageRetriever": "retriever",
    "DeviceTokenCache": "token_cache",
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
