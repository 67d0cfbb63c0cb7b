"""Stage 1: vectors and payloads behind one protocol, on three engines.

Importing this package loads none of them; the first index made or opened does.
"""

from __future__ import annotations

from edje_qdrant.errors import UnsupportedVersionError
from edje_qdrant.index.edge.index import EdgeIndex
from edje_qdrant.index.engines import Engine, create_embedded, open_embedded
from edje_qdrant.index.faiss.built import FaissKind
from edje_qdrant.index.faiss.index import FaissIndex
from edje_qdrant.index.filters.filter import Filter
from edje_qdrant.index.filters.groups import beyond_groups, check_group_field, field_value, is_group
from edje_qdrant.index.payload_indexes import PayloadKind, check_indexes
from edje_qdrant.index.protocol import TOKENS_KEY, VectorIndex
from edje_qdrant.index.qdrant.connection import QdrantOptions
from edje_qdrant.index.qdrant.index import QdrantIndex
from edje_qdrant.index.qdrant.settings import QdrantSettings, Quantization
from edje_qdrant.index.recommend import Strategy

__all__ = [
    "TOKENS_KEY",
    "EdgeIndex",
    "Engine",
    "FaissIndex",
    "FaissKind",
    "Filter",
    "PayloadKind",
    "QdrantIndex",
    "QdrantOptions",
    "QdrantSettings",
    "Quantization",
    "Strategy",
    "VectorIndex",
    "beyond_groups",
    "check_group_field",
    "check_indexes",
    "create_embedded",
    "field_value",
    "is_group",
    "open_embedded",
]

UnsupportedVersionError.check("qdrant-client")
