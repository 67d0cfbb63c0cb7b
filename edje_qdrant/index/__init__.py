"""Stage 1: vectors and payloads in one index, on one of three engines.

Importing this package loads no engine; creating or opening an index does.
"""

from __future__ import annotations

from edje_qdrant.errors import UnsupportedVersionError
from edje_qdrant.index.engines import (
    Engine,
    create_embedded,
    create_on_server,
    open_embedded,
    open_on_server,
)
from edje_qdrant.index.filters.field_paths import TOKENS_KEY
from edje_qdrant.index.filters.filter import Filter
from edje_qdrant.index.filters.groups import beyond_groups, check_group_field, field_value, is_group
from edje_qdrant.index.index import VectorIndex
from edje_qdrant.index.payload_indexes import PayloadKind, check_indexes
from edje_qdrant.index.qdrant.connection import QdrantOptions
from edje_qdrant.index.qdrant.inference_objects import (
    InferenceImage,
    TextQuery,
    image_of,
    text_of,
)
from edje_qdrant.index.qdrant.settings import MemoryPlacement, QdrantSettings, Quantization
from edje_qdrant.index.recommend import Strategy
from edje_qdrant.index.validate import json_integer
from edje_qdrant.index.words import (
    LANGUAGES,
    WORDS_KEY,
    WORDS_WEIGHT,
    ByWords,
    TextFields,
    check_text_fields,
)

__all__ = [
    "LANGUAGES",
    "TOKENS_KEY",
    "WORDS_KEY",
    "WORDS_WEIGHT",
    "ByWords",
    "Engine",
    "Filter",
    "InferenceImage",
    "MemoryPlacement",
    "PayloadKind",
    "QdrantOptions",
    "QdrantSettings",
    "Quantization",
    "Strategy",
    "TextFields",
    "TextQuery",
    "VectorIndex",
    "beyond_groups",
    "check_group_field",
    "check_indexes",
    "check_text_fields",
    "create_embedded",
    "create_on_server",
    "field_value",
    "image_of",
    "is_group",
    "json_integer",
    "open_embedded",
    "open_on_server",
    "text_of",
]

UnsupportedVersionError.check("qdrant-client")
