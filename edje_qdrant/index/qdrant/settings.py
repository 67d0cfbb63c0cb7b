"""Settings of a collection on a Qdrant server: shards, replicas, disk, quantization."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from edje_qdrant.errors import ConfigError

if TYPE_CHECKING:
    from qdrant_client import models

__all__ = [
    "MemoryPlacement",
    "QdrantSettings",
    "Quantization",
    "as_request",
    "check_settings",
    "needed_features",
    "oversampling_of",
]

#: What a search reads in place of the vectors, which have 4 bytes per number: `int8` has 1 byte per
#: number, `binary` 1 bit, `product-x4` to `product-x64` a 4th to a 64th of the vectors' bytes, and
#: `turbo8` to `turbo1` (TurboQuant, arXiv 2504.19874) as many bits per number as they say.
Quantization: TypeAlias = Literal[
    "int8", "binary", "product-x4", "product-x8", "product-x16", "product-x32", "product-x64",
    "turbo8", "turbo4", "turbo2", "turbo1.5", "turbo1",
]  # fmt: skip

#: How a server holds a part, which is on its disk in any case: `cold` reads it when it is needed,
#: `cached` also reads it when the server starts, `pinned` keeps it in memory of the process.
MemoryPlacement: TypeAlias = Literal["cold", "cached", "pinned"]

# Setting -> the placements that it can have, and the older setting of the same part.
_PLACEMENTS: dict[str, tuple[tuple[str, ...], str | None]] = {
    "vectors_memory": (("cold", "cached"), "vectors_on_disk"),
    "payload_memory": (("cold", "cached"), "payload_on_disk"),
    "graph_memory": (("cold", "cached", "pinned"), None),
    "quantized_memory": (("cold", "cached", "pinned"), "quantized_in_memory"),
}

_PRODUCT, _TURBO = "product-", "turbo"

# Candidates that a search takes by their quantized vectors for each one wanted, before it rescores
# by the original vectors: more for coarser quantization; benchmarks/quantization.py measures the
# recall of each. Text queries on images need more than usual. Kinds that only Qdrant's own client
# sets, such as TurboQuantization without a number of bits, count as coarse.
_OVERSAMPLING = {"scalar": 2.0, "binary": 4.0, "product": 4.0}
_FINE_TURBO = {"bits8", "bits4", "bits2"}
_OF_FINE, _OF_OTHERS = 2.0, 4.0


@dataclass(frozen=True, slots=True)
class QdrantSettings:
    """How a Qdrant server stores a new collection; None leaves a setting to the server.

    Attributes:
        shards: Parts that the images are spread over; cannot be changed later. Use a multiple of
            the number of nodes, so that all do the same work.
        replicas: Copies of each shard, on as many nodes.
        write_consistency: Copies that must confirm a write; at most `replicas`.
        payload_on_disk: Read payloads, and tokens in them, from disk when needed.
        vectors_on_disk: Read vectors from disk; the page cache holds as many as fit.
        quantization: What a search reads in place of the vectors; the best candidates are
            rescored by the original vectors.
        quantized_in_memory: Keep quantized vectors in memory, even if vectors are on disk.
        vectors_memory: `cold` or `cached`, in place of `vectors_on_disk`, on servers from Qdrant
            1.19 on; older ones refuse this setting and the next three when a collection is created.
        payload_memory: `cold` or `cached`, in place of `payload_on_disk`.
        graph_memory: `cold`, `cached` or `pinned`: the links between vectors.
        quantized_memory: `cold`, `cached` or `pinned`, in place of `quantized_in_memory`.

    Raises:
        ConfigError: A value is invalid, or two contradict each other.
    """

    shards: int | None = None
    replicas: int | None = None
    write_consistency: int | None = None
    payload_on_disk: bool | None = None
    vectors_on_disk: bool | None = None
    quantization: Quantization | None = None
    quantized_in_memory: bool | None = None
    vectors_memory: Literal["cold", "cached"] | None = None
    payload_memory: Literal["cold", "cached"] | None = None
    graph_memory: MemoryPlacement | None = None
    quantized_memory: MemoryPlacement | None = None

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
        for name in ("quantized_in_memory", "quantized_memory"):
            if getattr(self, name) is not None and self.quantization is None:
                raise ConfigError(f"{name} is set and quantization is not; choose one")
        for name, (allowed, older) in _PLACEMENTS.items():
            placement = getattr(self, name)
            if placement not in (None, *allowed):
                raise ConfigError(f"{name} is {placement!r}; give one of {', '.join(allowed)}")
            if placement is not None and older is not None and getattr(self, older) is not None:
                raise ConfigError(
                    f"{name} and {older} are both set; leave {older} out, or {name} for servers "
                    "before Qdrant 1.19"
                )
        if self.write_consistency is not None and self.write_consistency > (self.replicas or 1):
            raise ConfigError(
                f"write_consistency is {self.write_consistency}, but there are {self.replicas or 1}"
                " replicas, so that no write would ever count; raise replicas, or lower it"
            )


def needed_features(settings: QdrantSettings) -> dict[str, str]:
    """Return setting -> key of `versions.NEEDS`, for what not every supported server knows."""
    needed = {
        f"{name}={getattr(settings, name)!r}": "memory placement"
        for name in _PLACEMENTS
        if getattr(settings, name) is not None
    }
    if settings.quantization is not None:
        needed["quantization"] = settings.quantization
    return needed


def check_settings(settings: QdrantSettings | None, *, folder: bool) -> None:
    """Check that settings are given only for a server; in memory they have no effect.

    Raises:
        ConfigError: The place is a folder, or these are not settings.
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


def as_request(
    settings: QdrantSettings,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the arguments of `create_collection`: of the vectors, of the graph, and the others.

    Only settings that are not None.
    """
    from qdrant_client import models

    payload = settings.payload_memory
    told = {
        "shard_number": settings.shards,
        "replication_factor": settings.replicas,
        "write_consistency_factor": settings.write_consistency,
        "on_disk_payload": settings.payload_on_disk,
        "payload": None
        if payload is None
        else models.PayloadStorageParams(memory=_memory(payload)),
        "quantization_config": _quantization(settings),
    }
    vectors = {"on_disk": settings.vectors_on_disk, "memory": _memory(settings.vectors_memory)}
    return _set(vectors), _set({"memory": _memory(settings.graph_memory)}), _set(told)


def oversampling_of(config: models.QuantizationConfig | None) -> float | None:
    """Return the candidates for each wanted point; None without quantization."""
    if config is None:
        return None
    if (turbo := getattr(config, "turbo", None)) is not None:
        return _OF_FINE if turbo.bits in _FINE_TURBO else _OF_OTHERS
    known = (more for kind, more in _OVERSAMPLING.items() if hasattr(config, kind))
    return next(known, _OF_OTHERS)


def _quantization(settings: QdrantSettings) -> models.QuantizationConfig | None:
    from qdrant_client import models

    kind = settings.quantization
    memory = _set(
        {
            "always_ram": settings.quantized_in_memory,
            "memory": _memory(settings.quantized_memory),
        }
    )
    if kind is None:
        return None
    if kind == "int8":
        scalar = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, **memory)
        return models.ScalarQuantization(scalar=scalar)
    if kind == "binary":
        return models.BinaryQuantization(binary=models.BinaryQuantizationConfig(**memory))
    if kind.startswith(_TURBO):
        bits = models.TurboQuantBitSize("bits" + kind.removeprefix(_TURBO).replace(".", "_"))
        turbo = models.TurboQuantQuantizationConfig(bits=bits, **memory)
        return models.TurboQuantization(turbo=turbo)
    ratio = models.CompressionRatio(kind.removeprefix(_PRODUCT))
    return models.ProductQuantization(
        product=models.ProductQuantizationConfig(compression=ratio, **memory)
    )


def _memory(placement: str | None) -> models.Memory | None:
    from qdrant_client import models

    return None if placement is None else models.Memory(placement)


def _set(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
