"""Estimate of the disk, memory, shards, cores and GPUs that a collection and its load need."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from edje_qdrant.errors import ConfigError
from edje_qdrant.tokens.codecs import codec_for

__all__ = ["Accelerator", "Line", "Plan", "Workload", "load_constants", "plan"]

#: The kind of processor that runs the joint encoder.
Accelerator = Literal["gpu", "cpu"]

# Sequence length with which the rates of the joint encoder were measured: 64 tokens, [CLS], 16
# words, [SEP] and the separator in between. The cost of a pair grows with the length.
_WORDS, _MEASURED_LENGTH = 19, 83

# Bytes of one component of a vector in the engine.
_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Describe a collection, its load and the machines.

    Attributes:
        images: Number of images.
        qps: Searches per second at peak load.
        codec: Codec of the tokens.
        candidates: Images reranked in each search.
        num_tokens: Tokens of each image.
        token_dim: Dimension of a token.
        embedding_dim: Dimension of an embedding.
        replicas: Number of copies of all data.
        machine_ram_gb: Memory of a machine, in 10^9 bytes.
        accelerator: The kind of processor that runs the joint encoder.
        cores: Cores of the machine that ingests without a GPU.
        gpu_pairs_per_second: Rate of one GPU; None for the shipped constant.
        cpu_pairs_per_second: Rate of one core; None for the shipped constant.
        load: Maximum utilisation of processors, and share of the memory used for vectors.

    Raises:
        ConfigError: A number is invalid, or there is no such codec.
    """

    images: int
    qps: float = 1.0
    codec: str = "float16"
    candidates: int = 100
    num_tokens: int = 64
    token_dim: int = 384
    embedding_dim: int = 1024
    replicas: int = 1
    machine_ram_gb: float = 256.0
    accelerator: Accelerator = "gpu"
    cores: int = 2
    gpu_pairs_per_second: float | None = None
    cpu_pairs_per_second: float | None = None
    load: float = 0.7

    def __post_init__(self) -> None:
        for name in (
            "images", "candidates", "num_tokens", "token_dim", "embedding_dim", "replicas", "cores",
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; give a whole number, 1 or more")
        for name in ("qps", "machine_ram_gb", "gpu_pairs_per_second", "cpu_pairs_per_second"):
            value = getattr(self, name)
            if value is None and name.endswith("_second"):
                continue
            if not _is_number(value) or value <= 0:
                raise ConfigError(f"{name} is {value!r}; give a number above 0")
        if not _is_number(self.load) or not 0 < self.load <= 1:
            raise ConfigError(f"load is {self.load!r}; give a number above 0 and at most 1")
        if self.accelerator not in get_args(Accelerator):
            raise ConfigError(f'accelerator is {self.accelerator!r}; give "gpu" or "cpu"')
        codec_for(self.codec, self.num_tokens, self.token_dim)


@dataclass(frozen=True, slots=True)
class Line:
    """Hold one step of the calculation.

    Attributes:
        section: Section of the plan: disk, memory, ...
        what: The quantity.
        arithmetic: The calculation, in numbers.
        value: The result, in `unit`.
        unit: bytes, machines, cores, ...
    """

    section: str
    what: str
    arithmetic: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Hold the hardware that a workload needs.

    Attributes:
        workload: The workload.
        disk_bytes: Disk on all machines together, including replicas.
        ram_bytes: Memory for vectors and graphs, including replicas.
        shards: Number of shards of the index, each of which fits into one machine's memory.
        machines: Machines for the index, including replicas.
        cores: Cores for the first stage, for reading tokens and, without GPUs, for the joint
            encoder.
        gpus: GPUs for the joint encoder; 0 if the CPU runs it.
        ingest_cpu_seconds: Seconds of the first ingest on `Workload.cores` cores.
        ingest_gpu_seconds: Seconds of the first ingest on one GPU, of photographs.
        ingest_gpu_small_seconds: The same of small files, whose decoding takes little time.
        lines: The calculation.
        notes: Limitations of the estimate.
        constants: The constants used, with date, machine and command of each measurement.
    """

    workload: Workload
    disk_bytes: int
    ram_bytes: int
    shards: int
    machines: int
    cores: int
    gpus: int
    ingest_cpu_seconds: float
    ingest_gpu_seconds: float
    ingest_gpu_small_seconds: float
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    constants: Mapping[str, Mapping[str, Any]]


def load_constants() -> dict[str, dict[str, Any]]:
    """Return the shipped constants: name -> value, description, date, machine and command."""
    path = Path(__file__).with_name("constants.json")
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def plan(workload: Workload, constants: Mapping[str, Mapping[str, Any]] | None = None) -> Plan:
    """Estimate the hardware that a workload needs.

    Args:
        workload: The collection and its load.
        constants: In the form of `load_constants`; by default the shipped ones.
    """
    known = load_constants() if constants is None else constants
    w, sums = workload, _Sums()
    codec_bytes = codec_for(w.codec, w.num_tokens, w.token_dim).nbytes
    disk, index_bytes, token_bytes = _disk(w, known, sums, codec_bytes)
    ram, shards, machines = _memory(w, sums, index_bytes)
    cores = _searching(w, known, sums, shards, codec_bytes)
    joint_cores, gpus = _joint_encoder(w, known, sums, codec_bytes)
    ingest = _ingest(w, known, sums)
    notes = [
        f"{name}: {entry['what']}" for name, entry in known.items()
        if not entry["measured"] and name == "gpu_pairs_per_second" and gpus
        and w.gpu_pairs_per_second is None
    ]  # fmt: skip
    notes.append(
        "the first stage was measured with vectors in memory, smaller than in large encoders, "
        "and scaled by the logarithm of a shard's size; measure with your own images before "
        "buying"
    )
    if (w.num_tokens, w.token_dim) != (64, 384):
        notes.append(
            "reading and decoding were measured with 64 x 384 tokens and scaled by their number"
        )
    if token_bytes > ram:
        notes.append(
            "side files are larger than the memory planned: count on random reads from SSDs, or "
            "add memory for the images asked for most (DeviceTokenCache)"
        )
    total_cores = cores + joint_cores
    return Plan(
        w, disk, ram, shards, machines, total_cores, gpus, *ingest, tuple(sums.lines),
        tuple(notes), known,
    )  # fmt: skip


class _Sums:
    """Collect the lines of the calculation."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.section = ""

    def add(self, what: str, arithmetic: str, value: float, unit: str) -> float:
        self.lines.append(Line(self.section, what, arithmetic, value, unit))
        return value


def _disk(
    w: Workload, known: Mapping[str, Mapping[str, Any]], sums: _Sums, codec_bytes: int
) -> tuple[int, int, int]:
    """Return the bytes of all data, of one index copy and of one copy of the side files."""
    sums.section = "disk"
    each = _FLOAT_BYTES * w.embedding_dim
    besides = known["index_bytes_besides_vectors"]["value"]
    tokens = w.images * codec_bytes
    sums.add("tokens of an image", f"{w.num_tokens} tokens as {w.codec}", codec_bytes, "bytes")
    sums.add("side files", f"{w.images:,} x {codec_bytes:,} bytes", tokens, "bytes")
    vectors = w.images * each
    sums.add("vectors", f"{w.images:,} x {w.embedding_dim} x 4 bytes", vectors, "bytes")
    graph = w.images * besides
    sums.add("graph, ids, payloads", f"{w.images:,} x {besides:,} bytes", graph, "bytes")
    total = w.replicas * (tokens + vectors + graph)
    sums.add("total", f"{w.replicas} x (side files + vectors + graph)", total, "bytes")
    sums.add(
        "free space for compact and transcode", f"side files once, {w.replicas} x",
        w.replicas * tokens, "bytes",
    )  # fmt: skip
    return total, vectors + graph, tokens


def _memory(w: Workload, sums: _Sums, index_bytes: int) -> tuple[int, int, int]:
    """Return the bytes of memory of all copies, and the numbers of shards and machines."""
    sums.section = "memory"
    usable = w.load * w.machine_ram_gb * 1e9
    sums.add("vectors and graph of a copy", "vectors + graph, ids, payloads", index_bytes, "bytes")
    shards = math.ceil(index_bytes / usable)
    sums.add(
        "shards", f"{_size(index_bytes)} / ({w.load:g} x {w.machine_ram_gb:g} GB a machine)",
        shards, "shards",
    )  # fmt: skip
    machines = shards * w.replicas
    sums.add("machines", f"{shards:,} x {w.replicas}", machines, "machines")
    ram = w.replicas * index_bytes
    sums.add("memory", f"{w.replicas} x {_size(index_bytes)}", ram, "bytes")
    return ram, shards, machines


def _searching(
    w: Workload,
    known: Mapping[str, Mapping[str, Any]],
    sums: _Sums,
    shards: int,
    codec_bytes: int,
) -> int:
    """Return the cores for the first stage and for reading tokens."""
    sums.section = "searching"
    first = known["first_stage_ms"]
    in_shard = w.images / shards
    # The number of steps of a graph search grows with the logarithm of the graph's size.
    growth = max(math.log(max(in_shard, 2)) / math.log(first["pictures"]), 0.1)
    each = sums.add(
        "first stage of a query in a shard",
        f"{first['value']:g} ms among {first['pictures']:,} x log({in_shard:,.0f}) / "
        f"log({first['pictures']:,})",
        first["value"] * growth,
        "ms",
    )
    ann = sums.add(
        "cores for the first stage",
        f"{w.qps:g} a second x {shards:,} shards x {each:.2f} ms / {w.load:g}",
        w.qps * shards * each / 1000 / w.load,
        "cores",
    )
    scale = w.candidates * w.num_tokens * w.token_dim / (known["fetch_ms"]["candidates"] * 64 * 384)
    per_query = _of_codec(known["fetch_ms"]["value"], w.codec) * scale
    what = f"{_of_codec(known['fetch_ms']['value'], w.codec):g} ms to read"
    if w.accelerator == "cpu":
        decode = _of_codec(known["decode_ms"]["value"], w.codec)
        per_query += decode * scale
        what += f" + {decode:g} ms to decode"
    reading = sums.add(
        "cores for tokens",
        f"{w.qps:g} a second x ({what}) x {scale:g} / {w.load:g}",
        w.qps * per_query / 1000 / w.load,
        "cores",
    )
    reads = w.qps * w.candidates
    sums.add("token records read", f"{w.qps:g} x {w.candidates} candidates", reads, "a second")
    sums.add(
        "bytes read", f"{reads:,.0f} x {codec_bytes:,} bytes", reads * codec_bytes,
        "bytes a second",
    )  # fmt: skip
    return math.ceil(ann + reading)


def _joint_encoder(
    w: Workload, known: Mapping[str, Mapping[str, Any]], sums: _Sums, codec_bytes: int
) -> tuple[int, int]:
    """Return the numbers of cores and of GPUs for the joint encoder."""
    sums.section = "joint encoder"
    pairs = w.qps * w.candidates
    sums.add("pairs", f"{w.qps:g} x {w.candidates} candidates", pairs, "a second")
    length = (w.num_tokens + _WORDS) / _MEASURED_LENGTH
    on_gpu = w.accelerator == "gpu"
    constant = known["gpu_pairs_per_second" if on_gpu else "cpu_pairs_per_second_and_core"]
    own = w.gpu_pairs_per_second if on_gpu else w.cpu_pairs_per_second
    given = constant["value"] if own is None else own
    rate, told = given, f"{given:,g}"
    if own is None and length != 1:
        rate = given / length
        told += f" / ({w.num_tokens + _WORDS} / {_MEASURED_LENGTH} of the length)"
    origin = "as you said" if own is not None else ""
    if not origin:
        origin = "measured" if constant["measured"] else "a goal, not measured"
    unit = "GPUs" if on_gpu else "cores"
    sums.add(f"pairs of one of the {unit}", f"{told}, {origin}", rate, "a second")
    count = math.ceil(pairs / (rate * w.load))
    sums.add(unit, f"{pairs:,.0f} / ({rate:,.0f} x {w.load:g})", count, unit)
    if on_gpu:
        sums.add(
            "codes sent to them", f"{pairs:,.0f} x {codec_bytes:,} bytes", pairs * codec_bytes,
            "bytes a second",
        )  # fmt: skip
    return (0, count) if on_gpu else (count, 0)


def _ingest(
    w: Workload, known: Mapping[str, Mapping[str, Any]], sums: _Sums
) -> tuple[float, float, float]:
    """Return the seconds of a first ingest: on CPUs; on a GPU of photographs, of small files."""
    sums.section = "first ingest"
    rate = known["images_per_second_two_cores"]["value"] / 2
    sums.add(
        "encoding all images on CPUs",
        f"{w.images:,} / ({rate:g} a second and core) / 86,400",
        w.images / rate / 86_400,
        "core-days",
    )
    on_cpu = sums.add(
        "without a GPU",
        f"{w.images:,} / ({rate:g} a second and core x {w.cores:,})",
        w.images / rate / w.cores,
        "seconds",
    )
    gpu, decode = known["images_per_second_gpu"], known["decode_photograph_ms"]["value"]
    small = sums.add(
        "on one GPU, small files",
        f"{w.images:,} / {gpu['value']:g} a second",
        w.images / gpu["value"],
        "seconds",
    )
    decoding = sums.add(
        f"on one GPU with {gpu['cores']} cores, decoding",
        f"{w.images:,} x {decode:g} ms for 12 megapixels / {gpu['cores']} cores",
        w.images * decode / 1000 / gpu["cores"],
        "seconds",
    )
    return on_cpu, max(small, decoding), small


def _of_codec(values: Mapping[str, float], codec: str) -> float:
    """Return the milliseconds of a codec; for an unmeasured codec, the largest value."""
    return float(values.get(codec, max(values.values())))


def _size(nbytes: float) -> str:
    """Format a number of bytes with a unit."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:,.3g} {unit}"
    return f"{nbytes:,.0f} bytes"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
