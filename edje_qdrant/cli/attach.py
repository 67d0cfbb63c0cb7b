"""Commands on Qdrant collections that other programs made: `attach`, `detach`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edje_qdrant.cli.confirm import DryRun, Yes, agreed
from edje_qdrant.cli.help import COLLECTION, MODEL
from edje_qdrant.cli.loading import (
    all_failed,
    bar_shown,
    failure_lines,
    load_model,
    note_demo_model,
    print_result,
)
from edje_qdrant.cli.options import (
    BatchSize,
    Device,
    Grpc,
    GrpcPort,
    Json,
    Progress,
    Timeout,
    Url,
    Wait,
    Workers,
    place_of,
)

__all__ = ["attach", "detach"]

Collection = Annotated[
    str,
    typer.Option(
        "--collection",
        metavar="NAME",
        rich_help_panel=COLLECTION,
        help="Name of your own collection.",
    ),
]


def attach(
    collection: Collection,
    path_field: Annotated[
        str,
        typer.Option(
            metavar="FIELD",
            help="Payload field with the image's path; dots separate nested fields.",
        ),
    ],
    url: Url = None,
    grpc: Grpc = False,
    grpc_port: GrpcPort = None,
    timeout: Timeout = 30,
    wait: Wait = 300,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder that relative paths start from; the working folder by default.",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="NAME_OR_PATH",
            rich_help_panel=MODEL,
            help="A name, a folder or a hub id.",
        ),
    ] = "demo",
    codec: Annotated[
        str | None,
        typer.Option(
            "--codec",
            metavar="CODEC",
            help="How tokens are stored: float16 (default), int8, int4, or a file that "
            "fit-codec wrote.",
        ),
    ] = None,
    tokens_folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep tokens in side files in this folder, not in the points' payload.",
        ),
    ] = None,
    device: Device = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    progress: Progress = None,
    as_json: Json = False,
) -> None:
    """Add tokens to your own Qdrant collection, to rerank your searches.

    Vectors and payload do not change, except for the new payload key _edje. Exit code 1 if every
    image failed.
    """
    place = place_of(None, url, grpc, grpc_port, timeout)
    loaded = load_model(model, device, None)
    from edje_qdrant.attach.attach_tokens import attach_tokens
    from edje_qdrant.collection.checks import named_codec

    note_demo_model(loaded)
    report = attach_tokens(
        place.location,
        collection,
        loaded,
        path_field=path_field,
        images=images,
        codec=None if codec is None else named_codec(codec, loaded.contract()),
        tokens_folder=tokens_folder,
        batch_size=batch_size,
        workers=workers,
        progress=bar_shown(progress),
        wait=wait,
        **place.server,
    )
    data = {
        "added": report.added,
        "skipped": report.skipped,
        "failed": [asdict(failure) for failure in report.failed],
        "seconds": round(report.seconds, 3),
        "location": place.location,
        "name": collection,
        "model": model,
    }
    lines = [
        f"{report.added} images have tokens now, {report.skipped} had them already, "
        f"{len(report.failed)} failed in {report.seconds:.1f} s "
        f"({report.images_per_second:.1f} images/s)",
        *failure_lines(report.failed),
    ]
    print_result(data, lines, as_json)
    if all_failed(report):
        raise typer.Exit(1)


def detach(
    collection: Collection,
    yes: Yes = False,
    dry_run: DryRun = False,
    url: Url = None,
    grpc: Grpc = False,
    grpc_port: GrpcPort = None,
    timeout: Timeout = 30,
    as_json: Json = False,
) -> None:
    """Remove what attach wrote to a collection.

    It shows how many points there are and three of them, and asks. Side files are kept.
    """
    from edje_qdrant.attach.attach_tokens import detach_tokens

    text = f"no tokens are attached to {collection}"

    def agree(count: int, examples: list[str]) -> bool:
        nonlocal text
        text = "nothing was changed"
        what = f"the tokens of up to {count:,} points of {collection} would be removed"
        return agreed(what, examples, count, yes=yes, dry_run=dry_run)

    place = place_of(None, url, grpc, grpc_port, timeout)
    detached = detach_tokens(place.location, collection, agree=agree, **place.server)
    if detached:
        text = f"removed the tokens of {collection}"
    data = {"location": place.location, "name": collection, "detached": detached}
    print_result(data, [text], as_json)
