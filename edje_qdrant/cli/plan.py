"""Command `plan`: disk, memory and machines for a collection of a given size and load."""

from __future__ import annotations

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
        typer.Option(metavar="N", help="Number of images: 1000000 or 1e6.", show_default=False),
    ],
    qps: Annotated[
        float, typer.Option(metavar="N", help="Searches per second at peak.", show_default=False)
    ],
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
    accelerator: Annotated[
        str, typer.Option(metavar="gpu|cpu", help="What runs the joint encoder.")
    ] = "gpu",
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
    """Estimate the disk, memory and machines that a collection needs."""
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
            accelerator=cast("Accelerator", accelerator),
            gpu_pairs_per_second=gpu_pairs_per_second,
            cpu_pairs_per_second=cpu_pairs_per_second,
            load=load,
        )
    )
    print_result(asdict(found), _as_lines(found), as_json)


def _as_lines(found: Plan) -> list[str]:
    lines: list[str] = []
    section = ""
    for line in found.lines:
        if line.section != section:
            section = line.section
            lines += ["", section] if lines else [section]
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


def _amount(value: float, unit: str) -> str:
    if unit.startswith("bytes"):
        for name, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if value >= size:
                return f"{value / size:,.2f} {name}{unit.removeprefix('bytes')}"
    number = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.2f}"
    return f"{number} {unit.removesuffix('s') if number == '1' else unit}"
