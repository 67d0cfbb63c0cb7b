"""Options that commands share, and the only place where environment variables are read."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from edje_qdrant.errors import ConfigError

if TYPE_CHECKING:
    from edje_qdrant.index import QdrantSettings
    from edje_qdrant.index import Quantization as QuantizationName

__all__ = [
    "Codec",
    "Collection",
    "Device",
    "Engine",
    "Index",
    "Json",
    "Model",
    "OnDisk",
    "Progress",
    "Quantization",
    "Replicas",
    "Shards",
    "Url",
    "Where",
    "api_key",
    "field_of",
    "filter_of",
    "indexes_of",
    "service_keys",
    "settings_of",
    "where_is",
]

_URL = "EDJE_QDRANT_URL"
_API_KEY = "EDJE_QDRANT_API_KEY"
_SERVICE_KEY = "EDJE_QDRANT_SERVICE_KEY"

Index = Annotated[
    str | None,
    typer.Option("--index", metavar="FOLDER", help="Folder of the embedded engine."),
]
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help=f"Address of a Qdrant server; without --index, {_URL} is the default. "
        f"An API key is read from {_API_KEY}.",
    ),
]
Collection = Annotated[
    str, typer.Option("--collection", metavar="NAME", help="Name of the collection.")
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME_OR_PATH",
        help="Model; the one that wrote the collection by default, or else 'demo'.",
    ),
]
Codec = Annotated[
    str | None,
    typer.Option(
        "--codec",
        help="How a collection that is created stores tokens: float16 (exact, by default), int8 "
        "(half the bytes), int4 (a quarter), pq16 to pq48 (16 to 48 bytes a token), or a file of "
        "fit-codec.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:1 ...; CUDA where there is one, by default."),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="FIELD=VALUE",
        help="Images whose payload has this; repeat it for more values of a field, or more "
        "fields, all of which must hold. VALUE is JSON where it can be read so, or else text.",
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help="What keeps the vectors of a collection that is created in a folder: edge (by "
        "default), or, with the extra faiss, faiss (compares all), faiss-ivf, faiss-hnsw.",
    ),
]
Shards = Annotated[
    int | None,
    typer.Option(
        "--shards",
        help="Parts that a collection is spread over, if it is created on a server; like "
        "--replicas, --quantization and --on-disk of no effect on one that is there.",
    ),
]
Replicas = Annotated[
    int | None, typer.Option("--replicas", help="Copies of each shard, on as many nodes.")
]
Quantization = Annotated[
    str | None,
    typer.Option(
        "--quantization",
        help="What searches read in place of the vectors: int8, binary, product-x4 to product-x64.",
    ),
]
OnDisk = Annotated[
    str | None,
    typer.Option(
        "--on-disk",
        metavar="WHAT",
        help="What the server reads from disk where it is needed: payload (tokens with it), "
        "vectors, or both: payload,vectors.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Progress = Annotated[
    bool | None,
    typer.Option("--progress/--no-progress", help="Show a bar; by default on a terminal."),
]


def where_is(index: str | None, url: str | None) -> str:
    """Return the folder or address that the options or the environment name.

    Raises:
        ConfigError: They name none, or two, or something else.
    """
    if index is not None and url is not None:
        raise ConfigError("give --index or --url, not both")
    if index is not None:
        if not index or "://" in index or index == ":memory:":
            raise ConfigError(f"--index takes a folder, not {index!r}; an address goes to --url")
        return index
    url = url if url is not None else os.environ.get(_URL)
    if not url:
        raise ConfigError("say where the collection is: --index FOLDER, or --url URL")
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"the address {url!r} must begin with http:// or https://")
    return url


def api_key() -> str | None:
    """Return the server's API key; it is no option, as options show in lists of processes."""
    return os.environ.get(_API_KEY) or None


def service_keys() -> tuple[str, ...]:
    """Return the keys that callers of the service must send one of; several, to change them."""
    keys = (key.strip() for key in os.environ.get(_SERVICE_KEY, "").split(","))
    return tuple(key for key in keys if key)


def field_of(text: str) -> tuple[str, Any]:
    """Read FIELD=VALUE.

    Raises:
        ConfigError: It is not of that form.
    """
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigError(f"{text!r} is not of the form FIELD=VALUE")
    try:
        return name, json.loads(value, parse_constant=str)  # NaN is no JSON
    except (ValueError, RecursionError):
        return name, value


def filter_of(where: list[str]) -> dict[str, Any]:
    """Return the filter that several FIELD=VALUE say, any of the values of each field."""
    values: dict[str, list[Any]] = {}
    for text in where:
        name, value = field_of(text)
        values.setdefault(name, []).extend(value if isinstance(value, list) else [value])
    return values


def settings_of(
    shards: int | None, replicas: int | None, quantization: str | None, on_disk: str | None
) -> QdrantSettings | None:
    """Return how a server is to keep a collection that is created; None where nothing is said.

    Raises:
        ConfigError: A value cannot be used.
    """
    if (shards, replicas, quantization, on_disk) == (None,) * 4:
        return None
    from edje_qdrant.index import QdrantSettings

    parts = set() if on_disk is None else {part.strip() for part in on_disk.split(",")}
    if not parts <= {"payload", "vectors"}:
        raise ConfigError(f"--on-disk takes payload, vectors or payload,vectors, not {on_disk!r}")
    return QdrantSettings(
        shards=shards,
        replicas=replicas,
        quantization=cast("QuantizationName | None", quantization),
        payload_on_disk=True if "payload" in parts else None,
        vectors_on_disk=True if "vectors" in parts else None,
    )


def indexes_of(texts: list[str]) -> dict[str, str]:
    """Read payload indexes, FIELD=KIND.

    Raises:
        ConfigError: One is not of that form, or cannot be made.
    """
    from edje_qdrant.index import check_indexes

    indexes: dict[str, Any] = {}
    for text in texts:
        field, separator, kind = text.partition("=")
        if not separator or not field:
            raise ConfigError(f"--payload-index takes FIELD=KIND, not {text!r}")
        indexes[field] = kind
    return {**check_indexes(indexes)}
