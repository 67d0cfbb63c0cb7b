"""Collections in every kind of place, of images whose encodings follow from their ids."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.contract import TokenContract
from edje_qdrant.types import ImageEncoding

CONTRACT = TokenContract(
    encoder="tiny",
    encoder_revision="e0",
    preprocessing="p0",
    embedding_dim=8,
    adapter_hash="a0",
    num_tokens=4,
    token_dim=6,
    model="demo",
    library_version="0.1.0",
)


def ids_of(n: int, start: int = 0) -> list[str]:
    return [str(uuid.UUID(int=i + 1)) for i in range(start, start + n)]


def encoding_of(ids: list[str], seed: int = 0) -> ImageEncoding:
    """Make an encoding that depends on each id alone, so that any process can make it again."""
    rngs = [np.random.default_rng([uuid.UUID(i).int, seed]) for i in ids]
    embeddings = np.array([r.standard_normal(8) for r in rngs], np.float32).reshape(-1, 8)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    tokens = np.array([r.standard_normal((4, 6)) for r in rngs], np.float16).reshape(-1, 4, 6)
    return ImageEncoding(embeddings, tokens)


def payloads_of(ids: list[str]) -> list[dict[str, Any]]:
    return [{"path": f"{i}.png", "nested": {"tags": ["a", "b"]}} for i in ids]


def fill(collection: ImageCollection, ids: list[str], seed: int = 0) -> ImageEncoding:
    encoding = encoding_of(ids, seed)
    collection.add(ids, encoding, payloads_of(ids))
    collection.flush()
    return encoding


@dataclass
class Place:
    location: Any
    tokens: str
    tokens_folder: Path | None

    def create(self, contract: TokenContract = CONTRACT, name: str = "images") -> ImageCollection:
        return ImageCollection.create(
            self.location,
            name,
            contract,
            tokens=self.tokens,
            tokens_folder=self.tokens_folder,
        )

    def open(self, name: str = "images") -> ImageCollection:
        return ImageCollection.open(self.location, name)


def make_place(kind: str, folder: Path) -> Place:
    engine, tokens = kind.split("-")
    if engine == "edge":
        return Place(folder / "pictures", tokens, None)
    from qdrant_client import QdrantClient  # takes longer to import than many tests run

    return Place(QdrantClient(":memory:"), tokens, folder / "side" if tokens == "file" else None)


KINDS = ["edge-file", "edge-payload", "memory-file", "memory-payload"]


def side_file(folder: Path) -> Path:
    (path,) = folder.rglob("tokens-*.bin")
    return path
