"""How a Qdrant server is to keep a collection: shards, replicas, what is on disk, quantization."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from edje_qdrant.errors import ConfigError

if TYPE_CHECKING:
    from qdrant_client import models

__all__ = ["QdrantSettings", "Quantization", "as_request", "check_settings", "oversampling_of"]

#: What a search reads in place of the vectors, 4 bytes a number: `int8` takes 1 byte a number,
#: `binary` 1 bit, and `product-x4` to `product-x64` a 4th to a 64th of the vectors' bytes.
Quantization: TypeAlias = Literal[
    "int8", "binary", "product-x4", "product-x8", "product-x16", "product-x32", "product-x64"
]

_PRODUCT = "product-"

# Candidates that a search takes by their quantized vectors for each one wanted, before it compares
# the vectors themselves: the more, the coarser the quantization; benchmarks/quantization.py shows
# what each finds. A query is text and what is searched are images: harder than usual.
_OVERSAMPLING = {"scalar": 2.0, "binary": 4.0, "product": 4.0}


@dataclass(frozen=True, slots=True)
class QdrantSettings:
    """Say how a Qdrant server is to keep a new collection; None leaves it to the server.

    Attributes:
        shards: Parts that the images are spread over; fixed once the collection is there. A
            multiple of the number of nodes, so that all do the same work.
        replicas: Copies of each shard, on as many nodes.
        write_consistency: Copies that must have a write before it counts; at most `replicas`.
        payload_on_disk: Read payloads, and tokens with them, from disk where they are needed.
        vectors_on_disk: Read vectors from disk; the page cache holds what there is room for.
        quantization: What a search reads in place of the vectors; the best it finds are compared
            by the vectors themselves.
        quantized_in_memory: Keep what quantization makes in memory, wherever the vectors are.

    Raises:
        ConfigError: A value cannot be used, or two do not fit each other.
    """

    shards: int | None = None
    replicas: int | None = None
    write_consistency: int | None = None
    payload_on_disk: bool | None = None
    vectors_on_disk: bool | None = None
    quantization: Quantization | None = None
    quantized_in_memory: bool | None = None

    def __post_init__(self) -> None:
        for name in ("shards", "replicas", "write_consistency"):
            number = getattr(self, name)
            if number is not None and (type(number) is not int or number < 1):
                raise ConfigError(f"{name} is {number!r}; give a whole number, 1 or more")
        for name in ("payload_on_disk", "vectors_on_disk", "quantized_in_memory"):
            if getattr(self, name) not in (None, True, False):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; give True or False")
        if self.quantization not in (None, *get_args(Quantization)):
            known = ", ".join(get_args(Quantization))
            raise ConfigError(f"quantization is {self.quantization!r}; give one of {known}")
        if self.quantized_in_memory is not None and self.quantization is None:
            raise ConfigError("quantized_in_memory is set and quantization is not; choose one")
        if self.write_consistency is not None and self.write_consistency > (self.replicas or 1):
            raise ConfigError(
                f"write_consistency is {self.write_consistency}, but there are {self.replicas or 1}"
                " replicas, so that no write would ever count; raise replicas, or lower it"
            )


def check_settings(settings: QdrantSettings | None, *, folder: bool) -> None:
    """Check that there is a server for the settings to be about; in memory they change nothing.

    Raises:
        ConfigError: The place is a folder, or these are no settings.
    """
    if settings is not None and not isinstance(settings, QdrantSettings):
        raise ConfigError(f"qdrant is a {type(settings).__name__}; give QdrantSettings(...)")
    if settings is not None and folder:
        chosen = [
            each.name for each in fields(settings) if getattr(settings, each.name) is not None
        ]
        raise ConfigError(
            f"qdrant= ({', '.join(chosen) or 'nothing set'}) is about a Qdrant server, and a "
            "folder has its own engine; leave it out, or give a server's address as the location"
        )


def as_request(settings: QdrantSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what `create_collection` is told: about the vectors, and about the collection.

    Only what is set is in it. `always_ram` and `on_disk` have newer names, which servers of the
    versions that this package works with do not all know.
    """
    told = {
        "shard_number": settings.shards,
        "replication_factor": settings.replicas,
        "write_consistency_factor": settings.write_consistency,
        "on_disk_payload": settings.payload_on_disk,
        "quantization_config": _quantization(settings),
    }
    vectors = {"on_disk": settings.vectors_on_disk}
    return _set(vectors), _set(told)


def oversampling_of(config: models.QuantizationConfig | None) -> float | None:
    """Return how many more candidates to take by quantized vectors; None without quantization."""
    for kind, more in _OVERSAMPLING.items():
        if hasattr(config, kind):
            return more
    return None


def _quantization(settings: QdrantSettings) -> models.QuantizationConfig | None:
    from qdrant_client import models

    kind, memory = settings.quantization, _set({"always_ram": settings.quantized_in_memory})
    if kind is None:
        return None
    if kind == "int8":
        scalar = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, **memory)
        return models.ScalarQuantization(scalar=scalar)
    if kind == "binary":
        return models.BinaryQuantization(binary=models.BinaryQuantizationConfig(**memory))
    ratio = models.CompressionRatio(kind.removeprefix(_PRODUCT))
    return models.ProductQuantization(
        product=models.ProductQuantizationConfig(compression=ratio, **memory)
    )


def _set(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
