"""Find images by text in two stages: vector search, then a joint encoder over stored tokens.

The names below are loaded when they are first used: importing the package itself loads neither
torch nor a vector engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edje_qdrant.version import __version__

if TYPE_CHECKING:
    from edje_qdrant.attach.attach_tokens import attach_tokens, detach_tokens
    from edje_qdrant.attach.attached_collection import AttachedCollection, RankedPoint
    from edje_qdrant.collection.collection import ImageCollection
    from edje_qdrant.contract import TokenContract
    from edje_qdrant.errors import (
        BusyError,
        CheckpointError,
        CollectionExistsError,
        CollectionLockedError,
        CollectionNotFoundError,
        ConfigError,
        ContractMismatchError,
        EdjeError,
        EngineUnavailableError,
        ImageReadError,
        ImagesDeletedError,
        ImagesNotFoundError,
        KeyRefusedError,
        MissingExtraError,
        RateLimitedError,
        StoreError,
        TokensCorruptError,
        TokensNotFoundError,
        UnknownOptionError,
        UnsupportedVersionError,
        WorkerDiedError,
    )
    from edje_qdrant.explain.explanation import Explanation
    from edje_qdrant.explain.heat_map import draw_explanation, draw_heat
    from edje_qdrant.explain.match import explain_match
    from edje_qdrant.image_to_text.caption_collection import CaptionCollection
    from edje_qdrant.image_to_text.caption_retriever import (
        CaptionHit,
        CaptionResult,
        CaptionRetriever,
    )
    from edje_qdrant.image_to_text.classify import (
        LabelScore,
        TextMatch,
        classify,
        classify_batch,
        match_texts,
    )
    from edje_qdrant.index import QdrantSettings
    from edje_qdrant.ingest.ingest import ingest_images
    from edje_qdrant.model import EDJEConfig, EDJEModel, EDJEModelForIndexing, EDJEModelForRanking
    from edje_qdrant.pair_scoring.score import PairReport, score_pairs_file
    from edje_qdrant.rerank.reranker import Reranker
    from edje_qdrant.rerank.token_cache import DeviceTokenCache
    from edje_qdrant.search.batcher import SearchBatcher
    from edje_qdrant.search.results import SearchHit, SearchResult
    from edje_qdrant.search.retriever import TwoStageRetriever
    from edje_qdrant.types import Candidate, FailedImage, ImageEncoding, IngestReport, Timings

__all__ = [
    "AttachedCollection",
    "BusyError",
    "Candidate",
    "CaptionCollection",
    "CaptionHit",
    "CaptionResult",
    "CaptionRetriever",
    "CheckpointError",
    "CollectionExistsError",
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
    "ImagesDeletedError",
    "ImagesNotFoundError",
    "IngestReport",
    "KeyRefusedError",
    "LabelScore",
    "MissingExtraError",
    "PairReport",
    "QdrantSettings",
    "RankedPoint",
    "RateLimitedError",
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
    "UnknownOptionError",
    "UnsupportedVersionError",
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
    "SearchBatcher": "search.batcher",
    "AttachedCollection": "attach.attached_collection",
    "RankedPoint": "attach.attached_collection",
    "attach_tokens": "attach.attach_tokens",
    "detach_tokens": "attach.attach_tokens",
    "CaptionCollection": "image_to_text.caption_collection",
    "CaptionHit": "image_to_text.caption_retriever",
    "CaptionResult": "image_to_text.caption_retriever",
    "CaptionRetriever": "image_to_text.caption_retriever",
    "ImageCollection": "collection.collection",
    "TokenContract": "contract",
    "explain_match": "explain.match",
    "Explanation": "explain.explanation",
    "draw_explanation": "explain.heat_map",
    "draw_heat": "explain.heat_map",
    "QdrantSettings": "index",
    "ingest_images": "ingest.ingest",
    "LabelScore": "image_to_text.classify",
    "TextMatch": "image_to_text.classify",
    "classify": "image_to_text.classify",
    "classify_batch": "image_to_text.classify",
    "match_texts": "image_to_text.classify",
    "EDJEConfig": "model",
    "EDJEModel": "model",
    "EDJEModelForIndexing": "model",
    "EDJEModelForRanking": "model",
    "PairReport": "pair_scoring.score",
    "score_pairs_file": "pair_scoring.score",
    "Reranker": "rerank.reranker",
    "TwoStageRetriever": "search.retriever",
    "DeviceTokenCache": "rerank.token_cache",
    "Candidate": "types",
    "FailedImage": "types",
    "ImageEncoding": "types",
    "IngestReport": "types",
    "SearchHit": "search.results",
    "SearchResult": "search.results",
    "Timings": "types",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    home = _HOMES.get(name, "errors")
    try:
        value = getattr(import_module(f"{__name__}.{home}"), name)
    except ModuleNotFoundError as error:
        from edje_qdrant.errors import MissingExtraError

        missing = MissingExtraError.of(error)
        if missing is None:
            raise
        raise missing from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
