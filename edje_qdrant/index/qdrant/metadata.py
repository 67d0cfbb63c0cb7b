"""Settings and metadata of a collection on a Qdrant server."""

from __future__ import annotations

from typing import Any, NamedTuple

from edje_qdrant.errors import CollectionExistsError, ConfigError, StoreError
from edje_qdrant.index import hnsw
from edje_qdrant.index.qdrant.connection import Connection
from edje_qdrant.index.qdrant.requests import new_words
from edje_qdrant.index.qdrant.settings import QdrantSettings, as_request, oversampling_of
from edje_qdrant.index.qdrant.strict_mode import Limits, read_limits
from edje_qdrant.index.qdrant.versions import ServerVersion
from edje_qdrant.index.words import WORDS_VECTOR

__all__ = [
    "Found",
    "as_metadata",
    "new_settings",
    "read_settings",
    "read_version",
    "require_absent",
    "settings_like",
    "was_made",
]

# The key of this package's metadata in Qdrant's. Qdrant merges new metadata into the old by
# top-level keys and replaces each value whole: under one key, the metadata is replaced atomically
# and completely.
_METADATA_KEY = "edje_qdrant"


class Found(NamedTuple):
    """A collection as a server describes it.

    Attributes:
        dim: Width of its vectors.
        metadata: This package's metadata.
        oversampling: Candidates for each wanted point if vectors are quantized; else None.
        indexes: Field path -> payload index.
        limits: What the collection's strict mode allows.
    """

    dim: int
    metadata: dict[str, Any]
    oversampling: float | None
    indexes: dict[str, Any]
    limits: Limits


def as_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return metadata as Qdrant stores it."""
    return {_METADATA_KEY: metadata}


def new_settings(dim: int, settings: QdrantSettings, *, words: bool) -> dict[str, Any]:
    """Return the settings of a new collection of `dim`-wide vectors.

    Args:
        dim: Width of the vectors.
        settings: How the server stores it.
        words: Whether points have words beside their vector.
    """
    from qdrant_client import models

    vectors, graph, told = as_request(settings)
    if words:
        told = {**told, "sparse_vectors_config": {WORDS_VECTOR: new_words()}}
    return {
        **told,
        "vectors_config": models.VectorParams(size=dim, distance=models.Distance.COSINE, **vectors),
        "hnsw_config": models.HnswConfigDiff(
            m=hnsw.LINKS,
            ef_construct=hnsw.BUILD_WIDTH,
            full_scan_threshold=hnsw.SCAN_KILOBYTES,
            **graph,
        ),
        "optimizers_config": models.OptimizersConfigDiff(indexing_threshold=hnsw.SCAN_KILOBYTES),
    }


def settings_like(connection: Connection, name: str, dim: int) -> dict[str, Any]:
    """Return the settings of a new collection of `dim`-wide vectors: those of another one.

    Raises:
        CollectionNotFoundError: There is no such collection.
        EngineUnavailableError: The server cannot be reached.
    """
    from qdrant_client import models

    config = connection.call(name, connection.client.get_collection, name).config
    params, vectors = config.params, config.params.vectors
    assert isinstance(vectors, models.VectorParams)  # `read_settings` opened it
    found: dict[str, Any] = {
        "vectors_config": vectors.model_copy(update={"size": dim}),
        "sparse_vectors_config": params.sparse_vectors,
        "shard_number": params.shard_number,
        "replication_factor": params.replication_factor,
        "write_consistency_factor": params.write_consistency_factor,
        "on_disk_payload": params.on_disk_payload,
        "payload": params.payload,
        "quantization_config": config.quantization_config,
    }
    # A description has these with other types than a request, and more of them are set.
    for key, described, asked in (
        ("hnsw_config", config.hnsw_config, models.HnswConfigDiff),
        ("optimizers_config", config.optimizer_config, models.OptimizersConfigDiff),
        ("strict_mode_config", config.strict_mode_config, models.StrictModeConfig),
    ):
        if described is not None:
            known = described.model_dump(exclude_none=True, include={*asked.model_fields})
            found[key] = asked(**known)
    return {key: value for key, value in found.items() if value is not None}


def read_settings(connection: Connection, name: str) -> Found:
    """Return what a server says about a collection.

    Raises:
        StoreError: This package did not create it.
    """
    from qdrant_client import models

    info = connection.call(name, connection.client.get_collection, name)
    config = info.config
    vectors = config.params.vectors
    metadata = (config.metadata or {}).get(_METADATA_KEY)
    if (
        not isinstance(vectors, models.VectorParams)
        or vectors.distance != models.Distance.COSINE
        or not isinstance(metadata, dict)
    ):
        raise StoreError(
            f"collection {name!r} at {connection.address} lacks what edje-qdrant writes with it: "
            "it was made by something else, or by a server older than Qdrant 1.16, which keeps "
            "no metadata; choose another name, or upgrade the server and delete it"
        )
    quantized = vectors.quantization_config or config.quantization_config
    oversampling = oversampling_of(quantized)
    return Found(vectors.size, metadata, oversampling, info.payload_schema, read_limits(info))


def read_version(connection: Connection, name: str) -> ServerVersion:
    """Read the version of the server that has a collection.

    Raises:
        StoreError: It is older than the oldest supported version.
        EngineUnavailableError: The server cannot be reached.
    """

    def ask() -> str | None:
        if connection.is_local:
            return None
        try:
            return str(connection.call(name, connection.client.info).version)
        except (ConfigError, StoreError):  # what stands before the server may not let it pass
            connection.require_open(name)
            return None

    return ServerVersion(ask, connection.address)


def require_absent(connection: Connection, name: str) -> None:
    """Check that there is no collection of that name.

    Raises:
        CollectionExistsError: There is one.
    """
    if connection.call(name, connection.client.collection_exists, name):
        raise CollectionExistsError(connection.address, name)


def was_made(connection: Connection, name: str, metadata: dict[str, Any]) -> bool:
    """Return whether there is a collection with this very metadata."""
    try:
        return read_settings(connection, name).metadata == metadata
    except StoreError:
        return False
