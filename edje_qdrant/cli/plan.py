"""Command `plan`: disk, memory and machines for a collection of a given size and load."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, cast

import typer

from edje_qdrant.cli.loading import print_result
from edje_qdrant.cli.options import Json
from edje_qdrant.errors import ConfigError

if TYPE_CHECKING:
    from edje_qdrant.planning.plan import Accelerator, Plan

__all__ = ["plan"]


def plan(
    num_images: Annotated[
        float,
        typer.Option(metavar="N", help="Number of images: 10000, 10k or 2M.", show_default=False),
    ],
    qps: Annotated[float, typer.Option(metavar="N", help="Searches per second at peak.")] = 1,
    codec: Annotated[str, typer.Option(metavar="CODEC", help="How tokens are stored.")] = "float16",
    num_candidates: Annotated[
        int, typer.Option(metavar="N", help="Images reranked per search.")
    ] = 100,
    num_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens per image.")] = 64,
    token_dim: Annotated[int, typer.Option(metavar="N", help="Width of a token.")] = 384,
    embedding_dim: Annotated[int, typer.Option(metavar="N", help="Width of a vector.")] = 1024,
    replicas: Annotated[int, typer.Option(metavar="N", help="Copies of all stored data.")] = 1,
    machine_ram_gb: Annotated[
        float, typer.Option(metavar="GB", help="Memory of one machine, in GB.")
    ] = 256,
    device: Annotated[
        str, typer.Option(metavar="gpu|cpu", help="What runs the joint encoder.")
    ] = "gpu",
    cores: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Cores that ingest without a GPU; by default those of this machine.",
            show_default=False,
        ),
    ] = None,
    gpu_pairs_per_second: Annotated[
        float | None,
        typer.Option(metavar="N", help="Your GPU's rate, in place of the shipped constant."),
    ] = None,
    cpu_pairs_per_second: Annotated[
        float | None,
        typer.Option(metavar="N", help="Your core's rate, in place of the shipped constant."),
    ] = None,
    load: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of processor time and memory to use.")
    ] = 0.7,
    as_json: Json = False,
) -> None:
    """Estimate how long a first ingest takes, and the hardware that a collection needs."""
    from edje_qdrant.planning import plan as planning

    if not num_images.is_integer():
        raise ConfigError(f"--num-images is {num_images:g}; give a whole number, 1 or more")
    found = planning.plan(
        planning.Workload(
            images=int(num_images),
            qps=qps,
            codec=codec,
            candidates=num_candidates,
            num_tokens=num_tokens,
            token_dim=token_dim,
            embedding_dim=embedding_dim,
            replicas=replicas,
            machine_ram_gb=machine_ram_gb,
            accelerator=cast("Accelerator", device),
            gpu_pairs_per_second=gpu_pairs_per_second,
            cpu_pairs_per_second=cpu_pairs_per_second,
            cores=os.cpu_count() or 1 if cores is None else cores,
            load=load,
        )
    )
    print_result(asdict(found), _as_lines(found), as_json)


def _as_lines(found: Plan) -> list[str]:
    lines = _first_ingest(found)
    section = ""
    for line in found.lines:
        if line.section != section:
            section = line.section
            lines += ["", section]
        lines.append(f"  {line.what:<40} {_amount(line.value, line.unit):>18}  = {line.arithmetic}")
    lines += [
        "",
        ", ".join(
            name + _amount(value, unit)
            for name, value, unit in (
                ("disk ", found.disk_bytes, "bytes"),
                ("memory ", found.ram_bytes, "bytes"),
                ("", found.shards, "shards"),
                ("", found.machines, "machines"),
                ("", found.cores, "cores"),
                ("", found.gpus, "GPUs"),
            )
        ),
        "",
        "counted with",
    ]
    for name, entry in found.constants.items():
        how = entry["command"] if entry["measured"] else "not measured"
        lines.append(f"  {name}: {entry['what']} ({entry['date']}; {entry['machine']}; {how})")
    lines += ["", *(f"note: {note}" for note in found.notes)]
    return lines


def _first_ingest(found: Plan) -> list[str]:
    gpu = found.constants["images_per_second_gpu"]
    cores = found.workload.cores
    return [
        f"first ingest of {found.workload.images:,} photographs of 12 megapixels, with a model of "
        "the published size:",
        f"  about {_duration(found.ingest_cpu_seconds)} on {_amount(cores, 'cores')} without a GPU",
        f"  about {_duration(found.ingest_gpu_seconds)} on {gpu['machine']} with {gpu['cores']} "
        f"cores; {_duration(found.ingest_gpu_small_seconds)} for files of 640 x 480",
    ]


def _duration(seconds: float) -> str:
    """Return the time in words, in the two largest units: `6 h 16 min`."""
    if seconds < 59.5:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days = round(seconds / 86_400)
    return f"{days:,} days" if days < 730 else f"{days / 365.25:,.0f} years"


def _amount(value: float, unit: str) -> str:
    if unit == "seconds":
        return _duration(value)
    if unit.startswith("bytes"):
        for name, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if value >= size:
                return f"{value / size:,.2f} {name}{unit.removeprefix('bytes')}"
    number = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.2f}"
    return f"{number} {unit.removesuffix('s') if number == '1' else unit}"
