"""Creating and opening an index, whichever engine stores it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from edje_qdrant.errors import ConfigError
from edje_qdrant.index.edge.backend import EdgeBackend
from edje_qdrant.index.faiss.backend import FaissBackend
from edje_qdrant.index.folder import FAISS, holds_index
from edje_qdrant.index.index import VectorIndex
from edje_qdrant.index.qdrant.backend import QdrantBackend
from edje_qdrant.index.qdrant.connection import QdrantOptions
from edje_qdrant.index.qdrant.settings import QdrantSettings

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

__all__ = [
    "Engine",
    "check_engine",
    "create_embedded",
    "create_on_server",
    "open_embedded",
    "open_on_server",
]

#: What stores an index in a folder: Qdrant Edge, or faiss, which compares all vectors.
Engine: TypeAlias = Literal["edge", "faiss"]

_BACKENDS: dict[str, type[EdgeBackend | FaissBackend]] = {
    "edge": EdgeBackend,
    "faiss": FaissBackend,
}
_REMOVED = ("faiss-ivf", "faiss-hnsw")
_DEFAULTS = QdrantOptions()


def check_engine(engine: str | None, folder: bool) -> None:
    """Check the engine asked for; None is the default of the place.

    Args:
        engine: Its name.
        folder: Whether the place is a folder.

    Raises:
        ConfigError: There is no such engine, or the place has its own.
    """
    if engine in _REMOVED:
        raise ConfigError(
            f"engine is {engine!r}, which this version no longer has; use faiss, which compares "
            "all vectors, or edge, which builds a graph for large collections"
        )
    if engine is not None and engine not in get_args(Engine):
        raise ConfigError(f"engine is {engine!r}; give one of {', '.join(get_args(Engine))}")
    if engine is not None and not folder:
        raise ConfigError(
            f"engine is {engine!r}, but a Qdrant server is its own engine; leave it out, or give a "
            "folder as the location"
        )


def create_embedded(
    folder: Path | str, dim: int, metadata: Mapping[str, Any], engine: Engine | None = None
) -> VectorIndex:
    """Make an empty index of `dim`-wide vectors in `folder`, which may exist already.

    Args:
        folder: Where.
        dim: Width of the vectors.
        metadata: A JSON object to keep with the index.
        engine: What stores the index; Edge by default.

    Raises:
        ConfigError: An argument cannot be used.
        StoreError: The folder holds an index already, or cannot be written.
        CollectionLockedError: Another process is making or using one there.
        MissingExtraError: faiss is not installed.
    """
    check_engine(engine, folder=True)
    return VectorIndex(_BACKENDS[engine or "edge"].create(Path(folder), dim, metadata))


def open_embedded(folder: Path | str) -> VectorIndex:
    """Open the index in `folder` with the engine that wrote it.

    Raises:
        CollectionNotFoundError: There is none; names those beside it.
        CollectionLockedError: It is open already, here or in another process.
        StoreError: It cannot be read.
        MissingExtraError: faiss is not installed.
    """
    folder = Path(folder)
    backend = FaissBackend if holds_index(folder, FAISS) else EdgeBackend
    return VectorIndex(backend.open(folder))


def create_on_server(
    location: str | QdrantClient,
    name: str,
    dim: int,
    metadata: Mapping[str, Any],
    options: QdrantOptions = _DEFAULTS,
    settings: QdrantSettings | None = None,
    *,
    like: str | None = None,
) -> VectorIndex:
    """Make an empty Qdrant collection of `dim`-wide vectors.

    Args:
        location: An address (`"http://localhost:6333"`; port 6333 if none is given), `":memory:"`,
            or a `QdrantClient`, which is not closed here. Each `":memory:"` is a new, empty engine:
            to open what was created in memory, pass the same client to both.
        name: Letters, digits, `-` and `_`.
        dim: Width of the vectors.
        metadata: A JSON object to keep with the collection.
        options: How to reach the server.
        settings: How the server stores the collection; without effect in memory.
        like: Name of a collection there whose settings the new one gets, in place of `settings`.

    Raises:
        ConfigError: An argument cannot be used.
        StoreError: There is a collection of that name.
        EngineUnavailableError: The server cannot be reached.
    """
    return VectorIndex(
        QdrantBackend.create(location, name, dim, metadata, options, settings, like=like)
    )


def open_on_server(
    location: str | QdrantClient, name: str, options: QdrantOptions = _DEFAULTS
) -> VectorIndex:
    """Open a Qdrant collection; see `create_on_server`.

    Raises:
        CollectionNotFoundError: There is none; names those that are there.
        StoreError: It was not made by this package.
        ConfigError: The location or the API key cannot be used.
        EngineUnavailableError: The server cannot be reached.
    """
    return VectorIndex(QdrantBackend.open(location, name, options))
