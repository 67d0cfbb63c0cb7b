"""Options that commands share; the only module that reads environment variables."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from edje_qdrant.cli.help import COLLECTION, MODEL, NEW_COLLECTION, OUTPUT, READING
from edje_qdrant.errors import ConfigError

if TYPE_CHECKING:
    from edje_qdrant.index import QdrantSettings
    from edje_qdrant.index import Quantization as QuantizationName

__all__ = [
    "BatchSize",
    "Codec",
    "Collection",
    "DecodeMemory",
    "DecodeSeconds",
    "Device",
    "Engine",
    "Grpc",
    "GrpcPort",
    "Index",
    "Json",
    "MaxPixels",
    "Model",
    "OnDisk",
    "OutArgument",
    "Place",
    "Precision",
    "Progress",
    "Quantization",
    "Replicas",
    "Shards",
    "TextFields",
    "TextLanguage",
    "Timeout",
    "Url",
    "Wait",
    "Where",
    "Workers",
    "api_key",
    "fields_of",
    "indexes_of",
    "place_at",
    "place_of",
    "service_keys",
    "settings_of",
    "where_is",
]

_URL = "EDJE_QDRANT_URL"
_API_KEY = "EDJE_QDRANT_API_KEY"
_SERVICE_KEY = "EDJE_QDRANT_SERVICE_KEY"

Index = Annotated[
    str | None,
    typer.Option(
        "--index",
        metavar="FOLDER",
        rich_help_panel=COLLECTION,
        help="Folder of a collection on the embedded engine.",
    ),
]
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        rich_help_panel=COLLECTION,
        help="Address of a Qdrant server, asked on port 6333 if it names none; without --index, "
        f"{_URL} is the default. An API key is read from {_API_KEY}.",
    ),
]
Grpc = Annotated[
    bool,
    typer.Option(
        "--grpc",
        rich_help_panel=COLLECTION,
        help="Ask the server over gRPC, on port 6334; with an address that names another port than "
        "6333, give --grpc-port.",
    ),
]
GrpcPort = Annotated[
    int | None,
    typer.Option(
        "--grpc-port",
        min=1,
        max=65535,
        metavar="PORT",
        rich_help_panel=COLLECTION,
        help="Port of --grpc.",
    ),
]
Timeout = Annotated[
    int,
    typer.Option(
        "--timeout",
        min=1,
        metavar="SECONDS",
        rich_help_panel=COLLECTION,
        help="Time limit of an answer of the server, and of all answers of one search together.",
    ),
]
Wait = Annotated[
    float,
    typer.Option(
        "--wait",
        min=0,
        metavar="SECONDS",
        rich_help_panel=COLLECTION,
        help="How long to wait for a server that does not answer any more, before giving up.",
    ),
]
Collection = Annotated[
    str,
    typer.Option(
        "--collection", metavar="NAME", rich_help_panel=COLLECTION, help="Name of the collection."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME_OR_PATH",
        rich_help_panel=MODEL,
        help="Model; by default the one that wrote the collection, else 'demo'.",
    ),
]
Codec = Annotated[
    str | None,
    typer.Option(
        "--codec",
        metavar="CODEC",
        rich_help_panel=NEW_COLLECTION,
        help="How a new collection stores tokens: float16 (default, exact), int8 (half the bytes), "
        "int4 (a quarter), pq16 to pq48 (16 to 48 bytes per token), or a file that fit-codec "
        "wrote.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        rich_help_panel=MODEL,
        help="cpu, cuda, cuda:1 ...; by default CUDA if available.",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="NAME",
        rich_help_panel=MODEL,
        help="Precision of the joint encoder: float32, bfloat16, float16 (GPUs), int8 (CPUs), or "
        "model for its training form. auto: the model's on a GPU; on a CPU bfloat16 if the "
        "processor has instructions for it and the model is wide enough, else float32.",
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="FIELD=VALUE",
        help="Only images with this payload value. Repeat it for more values of a field (any may "
        "match) or for more fields (all must match). VALUE is read as JSON if possible, "
        "else as text; a number beyond 64 bits is text. Also FIELD>=VALUE, FIELD<=VALUE, "
        "FIELD>VALUE, FIELD<VALUE of numbers and dates (taken_at>=2024-06-01), and "
        "FIELD~LAT,LON,METRES (place~38.72,-9.14,10000).",
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="edge|faiss",
        rich_help_panel=NEW_COLLECTION,
        help="Vector engine of a new collection in a folder: edge (default), or faiss (exact; "
        "needs the extra faiss).",
    ),
]
TextFields = Annotated[
    str | None,
    typer.Option(
        "--text-fields",
        metavar="FIELD,...",
        rich_help_panel=NEW_COLLECTION,
        help="Payload fields whose words search --hybrid finds, such as caption,path. "
        "text-fields adds them to a collection that exists.",
    ),
]
TextLanguage = Annotated[
    str | None,
    typer.Option(
        "--text-language",
        metavar="LANGUAGE",
        rich_help_panel=NEW_COLLECTION,
        help="Language of --text-fields, whose endings are cut off: english (default), german ... "
        "or none.",
    ),
]
Shards = Annotated[
    int | None,
    typer.Option(
        "--shards",
        metavar="N",
        rich_help_panel=NEW_COLLECTION,
        help="Shards of a new collection on a server. --shards, --replicas, --quantization and "
        "--on-disk do not change an existing collection.",
    ),
]
Replicas = Annotated[
    int | None,
    typer.Option(
        "--replicas",
        metavar="N",
        rich_help_panel=NEW_COLLECTION,
        help="Copies of each shard, each on another node.",
    ),
]
Quantization = Annotated[
    str | None,
    typer.Option(
        "--quantization",
        metavar="NAME",
        rich_help_panel=NEW_COLLECTION,
        help="Quantized vectors that searches read: int8, binary, product-x4 to product-x64, "
        "turbo8 to turbo1.",
    ),
]
OnDisk = Annotated[
    str | None,
    typer.Option(
        "--on-disk",
        metavar="WHAT",
        rich_help_panel=NEW_COLLECTION,
        help="What the server keeps on disk, not in memory: payload (with the tokens), vectors, "
        "or payload,vectors.",
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        rich_help_panel=MODEL,
        help="Images encoded at a time; by default 32 on a CPU, 64 on a GPU.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        rich_help_panel=READING,
        help="Processes that read and decode, for each process that encodes; by default the number "
        "of cores, 16 at most.",
    ),
]
MaxPixels = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        rich_help_panel=READING,
        help="Larger images are refused before they are decoded.",
    ),
]
DecodeMemory = Annotated[
    int,
    typer.Option(
        min=64,
        metavar="MB",
        rich_help_panel=READING,
        help="Memory for all decodes in progress. Large images wait for each other; one that needs "
        "more in total is refused.",
    ),
]
DecodeSeconds = Annotated[
    float,
    typer.Option(
        min=0.1,
        metavar="SECONDS",
        rich_help_panel=READING,
        help="Time limit of decoding one image, in seconds.",
    ),
]
OutArgument = Annotated[Path | None, typer.Argument(hidden=True)]  # the earlier form of --out
Json = Annotated[
    bool,
    typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON object as the last line."),
]
Progress = Annotated[
    bool | None,
    typer.Option(
        "--progress/--no-progress",
        rich_help_panel=OUTPUT,
        help="Show a progress bar; by default on a terminal.",
    ),
]


def where_is(index: str | None, url: str | None) -> str:
    """Return the folder or address given by the options or the environment.

    Raises:
        ConfigError: Neither or both are given, or the value is not valid.
    """
    if index is not None and url is not None:
        raise ConfigError("give --index or --url, not both")
    if index is not None:
        if not index or "://" in index or index == ":memory:":
            raise ConfigError(f"--index takes a folder, not {index!r}; give an address with --url")
        if os.path.isfile(index):
            raise ConfigError(f"--index {index} is a file; give the folder of a collection")
        return index
    url = url if url is not None else os.environ.get(_URL)
    if not url:
        raise ConfigError("say where the collection is: --index FOLDER, or --url URL")
    if not url.startswith(("http://", "https://")):
        shown = re.split(r"[/?#]", url.rpartition("@")[2])[0]  # it may hold a key
        raise ConfigError(f"the address {shown!r} must begin with http:// or https://")
    return url


@dataclass(frozen=True, slots=True)
class Place:
    """Say where a collection is, and how to ask a server.

    Attributes:
        location: Folder or address.
        server: Arguments of `ImageCollection.open` about a server.
    """

    location: str
    server: dict[str, Any] = field(repr=False)


def place_of(
    index: str | None, url: str | None, grpc: bool, grpc_port: int | None, timeout: int
) -> Place:
    """Return the place given by the options or the environment.

    Raises:
        ConfigError: As `where_is` and `place_at`.
    """
    return place_at(where_is(index, url), grpc, grpc_port, timeout)


def place_at(location: str, grpc: bool, grpc_port: int | None, timeout: int) -> Place:
    """Return the place at a folder or an address; a server's API key comes from the environment.

    Raises:
        ConfigError: The options about gRPC do not fit each other, or the place.
    """
    if grpc_port is not None and not grpc:
        raise ConfigError("--grpc-port is the port of --grpc; give --grpc too, or leave it out")
    if "://" not in location:
        if grpc:
            raise ConfigError(f"--grpc is about a server, and {location} is a folder; leave it out")
        return Place(location, {})
    return Place(
        location,
        {
            "api_key": api_key(),
            "prefer_grpc": grpc,
            "grpc_port": grpc_port,
            "timeout": timeout,
        },
    )


def api_key() -> str | None:
    """Return the server's API key; not an option, as process lists show options."""
    return os.environ.get(_API_KEY) or None


def service_keys() -> tuple[str, ...]:
    """Return the accepted keys of the service; several allow a change of keys without a break."""
    keys = (key.strip() for key in os.environ.get(_SERVICE_KEY, "").split(","))
    return tuple(key for key in keys if key)


def settings_of(
    shards: int | None, replicas: int | None, quantization: str | None, on_disk: str | None
) -> QdrantSettings | None:
    """Return a server's settings for a new collection; None if no option is given.

    Raises:
        ConfigError: A value is not valid.
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
    """Read payload indexes from FIELD=KIND.

    Raises:
        ConfigError: A text has another form, or the index cannot be created.
    """
    from edje_qdrant.index import check_indexes

    indexes: dict[str, Any] = {}
    for text in texts:
        field, separator, kind = text.partition("=")
        if not separator or not field:
            raise ConfigError(f"--payload-index takes FIELD=KIND, not {text!r}")
        indexes[field] = kind
    return {**check_indexes(indexes)}


def fields_of(given: str | None) -> list[str] | None:
    """Return the names of `caption,path`; None for none."""
    return None if given is None else [name.strip() for name in given.split(",")]
