"""Command `duplicates`: list groups of near-duplicates; it deletes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edje_qdrant.cli.loading import bar_shown, open_collection, print_result
from edje_qdrant.cli.options import (
    Collection,
    Grpc,
    GrpcPort,
    Index,
    Json,
    Progress,
    Timeout,
    Url,
    Wait,
    Where,
    place_of,
)
from edje_qdrant.errors import ConfigError

if TYPE_CHECKING:
    from edje_qdrant.maintenance import DuplicateImage, DuplicatesReport

__all__ = ["duplicates"]

# Groups and images of a group that are printed.
_GROUPS, _IMAGES = 20, 10


def duplicates(
    index: Index = None,
    url: Url = None,
    grpc: Grpc = False,
    grpc_port: GrpcPort = None,
    timeout: Timeout = 30,
    wait: Wait = 300,
    collection: Collection = "images",
    where: Where = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the largest groups as a PNG, one row each."),
    ] = None,
    ids: Annotated[
        bool,
        typer.Option(
            "--list",
            help="Print only the ids of the images besides the first of each group, one a line.",
        ),
    ] = False,
    hashes: Annotated[
        bool | None,
        typer.Option(
            "--hashes/--no-hashes",
            help="Read the image files in question and compare perceptual hashes; by default if "
            "the extra duplicates is installed.",
        ),
    ] = None,
    likeness: Annotated[
        float | None,
        typer.Option(
            metavar="0-1",
            help="Least likeness of two embeddings; by default 0.8 if hashes confirm it, else "
            "0.98.",
        ),
    ] = None,
    token_likeness: Annotated[
        float, typer.Option(metavar="0-1", help="Least likeness of the tokens of two images.")
    ] = 0.5,
    hash_bits: Annotated[
        int, typer.Option(min=0, max=64, help="Bits of 64 in which two hashes may differ.")
    ] = 14,
    progress: Progress = None,
    as_json: Json = False,
) -> None:
    """List groups of near-duplicates, such as copies, crops and bursts; delete nothing.

    The first image of a group is the one to keep: most pixels, then taken first, then largest file.
    """
    if ids and as_json:
        raise ConfigError("give --list or --json, which lists them as extra_ids, not both")
    if out is not None and out.suffix.lower() != ".png":
        raise ConfigError(f"--out draws a PNG, and {out.name} does not end in .png; rename it so")
    from edje_qdrant.index.where import filter_of
    from edje_qdrant.maintenance import DuplicateRule, find_duplicates

    given: dict[str, Any] = {"tokens": token_likeness, "hash_bits": hash_bits}
    if likeness is not None:
        given |= {"embeddings": likeness, "embeddings_alone": likeness}
    place = place_of(index, url, grpc, grpc_port, timeout)
    with open_collection(place, collection) as opened:
        report = find_duplicates(
            opened,
            rule=DuplicateRule(**given),
            filter=filter_of(where or []) or None,
            hashes=hashes,
            progress=bar_shown(progress),
            wait=wait,
        )
    if out is not None:
        from edje_qdrant.maintenance.duplicate_sheet import draw_duplicates

        draw_duplicates(report, out)
    lines = report.extra_ids if ids else _as_lines(report, hashes, out)
    if lines:
        print_result(report.as_dict(), lines, as_json)


def _as_lines(report: DuplicatesReport, hashes: bool | None, out: Path | None) -> list[str]:
    extra = len(report.extra_ids)
    lines = [
        f"{_count(report.images, 'image')} compared in {report.seconds:.1f} s: "
        f"{_count(len(report.groups), 'group')} of near-duplicates, {_count(extra, 'image')} "
        f"besides the first of each ({report.extra_bytes / 1e6:,.1f} MB)"
    ]
    for number, group in enumerate(report.groups[:_GROUPS], start=1):
        lines.append(f"group {number}: {len(group.images):,} images")
        lines += [
            f"  {'extra' if place else 'keep '}  {_described(image, first=not place)}"
            for place, image in enumerate(group.images[:_IMAGES])
        ]
        if (more := len(group.images) - _IMAGES) > 0:
            lines.append(f"  and {more:,} more, all listed by --json")
    if (more := len(report.groups) - _GROUPS) > 0:
        lines.append(f"and {more:,} more groups, all listed by --json")
    if not report.hashed:
        why = "--no-hashes was given" if hashes is False else "the extra duplicates is missing"
        lines.append(f"image files were not compared, as {why}")
    elif report.unread:
        lines.append(
            f"{report.unread:,} files could not be compared, as they are missing, changed or parts "
            "of a film or a document; their images have to be more alike"
        )
    if report.without_tokens:
        lines.append(
            f"{report.without_tokens:,} images have no readable tokens; run edje-qdrant verify"
        )
    if out is not None:
        lines.append(f"drawn in {out}")
    if extra:
        lines.append("nothing was deleted; --list prints the ids of the extra images")
    return lines


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _described(image: DuplicateImage, *, first: bool) -> str:
    size = f"{image.width} x {image.height}" if image.width and image.height else "-"
    weight = "-" if image.file_size is None else f"{image.file_size / 1000:,.0f} kB"
    taken = "" if image.taken_at is None else f"  {image.taken_at}"
    alike = ""
    if not first:
        bits = "" if image.hash_distance is None else f", hash {image.hash_distance} bits"
        alike = f"  (embedding {image.likeness:.3f}, tokens {image.token_likeness:.3f}{bits})"
    return f"{size:>11}  {weight:>9}{taken}  {image.path or image.image_id}{alike}"
