"""Indexes in a folder, whichever engine keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from edje_qdrant.errors import ConfigError
from edje_qdrant.index.edge.index import EdgeIndex
from edje_qdrant.index.faiss.built import check_kind
from edje_qdrant.index.faiss.index import FaissIndex
from edje_qdrant.index.folder import FAISS, holds_index
from edje_qdrant.index.protocol import VectorIndex

__all__ = ["Engine", "check_engine", "create_embedded", "engine_of", "open_embedded"]

#: What keeps an index in a folder: Qdrant Edge, or faiss with all vectors compared (`faiss`), those
#: of the nearest cells (`faiss-ivf`), or along a graph (`faiss-hnsw`).
Engine: TypeAlias = Literal["edge", "faiss", "faiss-ivf", "faiss-hnsw"]


def check_engine(engine: str | None, folder: bool) -> None:
    """Check the engine asked for; None is the default of the place.

    Args:
        engine: Its name.
        folder: Whether the place is a folder.

    Raises:
        ConfigError: There is no such engine, or the place has its own.
    """
    if engine is not None and engine not in get_args(Engine):
        raise ConfigError(f"engine is {engine!r}; give one of {', '.join(get_args(Engine))}")
    if engine is not None and not folder:
        raise ConfigError(
            f"engine is {engine!r}, but a Qdrant server is its own engine; leave it out, or give a "
            "folder as the location"
        )


def create_embedded(
    folder: Path, dim: int, metadata: Mapping[str, Any], engine: Engine | None = None
) -> VectorIndex:
    """Make an empty index of `dim`-wide vectors in `folder`; see the engines' own `create`."""
    check_engine(engine, folder=True)
    if engine is None or engine == "edge":
        return EdgeIndex.create(folder, dim, metadata)
    kind = check_kind(engine.removeprefix("faiss").removeprefix("-") or "flat")
    return FaissIndex.create(folder, dim, metadata, kind)


def open_embedded(folder: Path) -> VectorIndex:
    """Open the index in `folder` with the engine that wrote it; see the engines' own `open`."""
    if holds_index(folder, FAISS):
        return FaissIndex.open(folder)
    return EdgeIndex.open(folder)


def engine_of(index: VectorIndex) -> str:
    """Return the name of what keeps an index: an `Engine`, or `qdrant`."""
    if isinstance(index, FaissIndex):
        return "faiss" if index.kind == "flat" else f"faiss-{index.kind}"
    return "edge" if isinstance(index, EdgeIndex) else "qdrant"
