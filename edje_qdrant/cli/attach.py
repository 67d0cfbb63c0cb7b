"""Commands on Qdrant collections that something else made: attach, detach.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edje_qdrant.cli.loading import (
    bar_shown,
    load_model,
    named_codec,
    note_demo_model,
    print_result,
)
from edje_qdrant.cli.options import Device, Json, Progress, Url, api_key, where_is

if TYPE_CHECKING:
    from edje_qdrant.types import IngestReport

__all__ = ["add_attach_commands"]

_FAILED_SHOWN = 20

Collection = Annotated[
    str, typer.Option("--collection", metavar="NAME", help="Name of your own collection.")
]


def attach(
    collection: Collection,
    path_field: Annotated[
        str,
        typer.Option(
            metavar="FIELD",
            help="Payload field with the path of the image; dots part nested ones.",
        ),
    ],
    url: Url = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where relative paths start; the working folder by default.",
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", metavar="NAME_OR_PATH", help="A name, a folder or a hub id.")
    ] = "demo",
    codec: Annotated[
        str | None,
        typer.Option(
            "--codec",
            help="How tokens are stored: float16 (by default), int8, int4, or a file of fit-codec.",
        ),
    ] = None,
    tokens_folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep tokens in side files here, not in the points' payload.",
        ),
    ] = None,
    device: Device = None,
    batch_size: Annotated[int, typer.Option(help="Images encoded at a time.")] = 32,
    workers: Annotated[int, typer.Option(help="Threads that read and decode.")] = 2,
    progress: Progress = None,
    as_json: Json = False,
) -> None:
    """Add tokens to a Qdrant collection of your own, to rerank what your searches find.

    Vectors and payload stay as they are, but for the payload key _edje.
    """
    where = where_is(None, url)
    loaded = load_model(model, device, None)
    from edje_qdrant.attach.attach_tokens import attach_tokens

    note_demo_model(loaded)
    report = attach_tokens(
        where,
        collection,
        loaded,
        path_field=path_field,
        images=images,
        codec=None if codec is None else named_codec(codec, loaded.contract()),
        tokens_folder=tokens_folder,
        batch_size=batch_size,
        workers=workers,
        progress=bar_shown(progress),
        api_key=api_key(),
    )
    data = {
        "added": report.added,
        "skipped": report.skipped,
        "failed": [asdict(failure) for failure in report.failed],
        "seconds": round(report.seconds, 3),
        "location": where,
        "name": collection,
        "model": model,
    }
    print_result(data, _report_text(report), as_json)


def detach(collection: Collection, url: Url = None, as_json: Json = False) -> None:
    """Remove what attach wrote to a collection; side files stay."""
    from edje_qdrant.attach.attach_tokens import detach_tokens

    where = where_is(None, url)
    detach_tokens(where, collection, api_key=api_key())
    text = f"nothing is attached to {collection} any more"
    print_result({"location": where, "name": collection, "detached": True}, text, as_json)


def add_attach_commands(app: typer.Typer) -> None:
    """Put the commands of this module under the program."""
    app.command("attach")(attach)
    app.command("detach")(detach)


def _report_text(report: IngestReport) -> str:
    lines = [
        f"{report.added} images have tokens now, {report.skipped} had them already, "
        f"{len(report.failed)} failed in {report.seconds:.1f} s "
        f"({report.images_per_second:.1f} pictures/s)"
    ]
    lines += [f"  {failure.path}: {failure.reason}" for failure in report.failed[:_FAILED_SHOWN]]
    if len(report.failed) > _FAILED_SHOWN:
        lines.append(f"  and {len(report.failed) - _FAILED_SHOWN} more, all listed by --json")
    return "\n".join(lines)
