"""The command line: read options, call one function, print what it returns.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from edje_qdrant.cli.attach import add_attach_commands
from edje_qdrant.cli.collection import add_collection_commands
from edje_qdrant.cli.eval import EvalCommand, calibrate, evaluate
from edje_qdrant.cli.export_onnx import export_model
from edje_qdrant.cli.loading import (
    bar_shown,
    note_demo_model,
    open_collection,
    open_or_create,
    print_result,
    silence_libraries,
)
from edje_qdrant.cli.options import (
    Codec,
    Collection,
    Device,
    Engine,
    Index,
    Json,
    Model,
    OnDisk,
    Progress,
    Quantization,
    Replicas,
    Shards,
    Url,
    indexes_of,
    settings_of,
    where_is,
)
from edje_qdrant.cli.pairs import add_pair_commands
from edje_qdrant.cli.plan import plan
from edje_qdrant.cli.search import search
from edje_qdrant.cli.serve import serve
from edje_qdrant.cli.train import train
from edje_qdrant.errors import ConfigError, EdjeError
from edje_qdrant.version import __version__

if TYPE_CHECKING:
    from edje_qdrant.model import EDJEModel
    from edje_qdrant.tokens.codecs import Codec as FittedCodec
    from edje_qdrant.types import IngestReport

__all__ = ["app", "main"]

_FAILED_SHOWN = 20


class _Commands(TyperGroup):
    """Say what went wrong in one line on stderr, whoever noticed it."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # file names may hold what cannot be printed
                stream.reconfigure(errors="backslashreplace")
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except Exception as error:
            # Some versions of Typer use click's errors and some their own; all can do this.
            if not hasattr(error, "format_message"):
                raise
            code = _refuse(f"{error.format_message()} See --help.")
        sys.exit(code or 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EdjeError as error:
            raise typer.Exit(_refuse(str(error))) from error
        except KeyboardInterrupt as error:
            _refuse("interrupted; what was written before is kept")
            raise typer.Exit(130) from error


def _refuse(message: str) -> int:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return 2


app = typer.Typer(
    cls=_Commands,
    help="Find images by text in two stages: vector search, then a joint encoder.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit; 2 is a refusal, 130 an interrupt."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    app(args, prog_name="edje-qdrant")


@app.callback()
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Find images by text in two stages: vector search, then a joint encoder."""
    if version:
        typer.echo(f"edje-qdrant {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def ingest(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="Folder of images, or a .jsonl manifest."),
    ],
    index: Index = None,
    url: Url = None,
    collection: Collection = "images",
    model: Model = None,
    codec: Codec = None,
    engine: Engine = None,
    shards: Shards = None,
    replicas: Replicas = None,
    quantization: Quantization = None,
    on_disk: OnDisk = None,
    device: Device = None,
    batch_size: Annotated[int, typer.Option(help="Images encoded at a time.")] = 32,
    workers: Annotated[
        int, typer.Option(help="Threads that read and decode, of each process.")
    ] = 2,
    processes: Annotated[
        int,
        typer.Option(
            min=0, help="Processes that decode and encode, each with a copy of the model; 0: none."
        ),
    ] = 0,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE,...",
            help="Devices of these processes, in turn: cuda:0,cuda:1. Without --processes, a "
            "process for each.",
        ),
    ] = None,
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Delete images that are gone from the source."),
    ] = False,
    payload_index: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=KIND",
            help="Index a field of the payload, so that filters on it are quick: keyword, integer, "
            "float, bool, datetime, geo, text or uuid; repeat it for more.",
        ),
    ] = None,
    progress: Progress = None,
    as_json: Json = False,
) -> None:
    """Add images to a collection, which is created where it is missing."""
    from edje_qdrant.ingest.ingest import fit_codec_to_source, ingest_images
    from edje_qdrant.ingest.process_pool import check_devices
    from edje_qdrant.ingest.sources import check_source
    from edje_qdrant.maintenance.copy import add_indexes

    where = where_is(index, url)
    check_source(source)  # before a collection is created for nothing
    indexes = indexes_of(payload_index or [])
    qdrant = settings_of(shards, replicas, quantization, on_disk)
    shown = bar_shown(progress)
    places = None if devices is None else [name.strip() for name in devices.split(",")]
    if device is not None and places is not None:
        raise ConfigError("give --device or --devices, not both")
    check_devices(processes, places, "cpu")
    device = places[0] if places is not None else device

    def fit(loaded: EDJEModel, name: str) -> FittedCodec:
        return fit_codec_to_source(source, loaded, name, batch_size=batch_size, progress=shown)

    target, loaded = open_or_create(where, collection, model, device, codec, fit, engine, qdrant)
    with target:
        note_demo_model(loaded)
        add_indexes(target, indexes)
        report = ingest_images(
            source,
            target,
            loaded,
            batch_size=batch_size,
            workers=workers,
            progress=shown,
            prune=prune,
            processes=processes,
            devices=places,
        )
        points = target.count()
    failed = [asdict(failure) for failure in report.failed]
    data = {
        "added": report.added,
        "skipped": report.skipped,
        "failed": failed,
        "pruned": report.pruned,
        "seconds": round(report.seconds, 3),
        "images_per_second": round(report.images_per_second, 2),
        "points": points,
        "location": where,
        "name": collection,
        "model": loaded.name_or_path,
    }
    print_result(data, _ingest_text(report, points, prune), as_json)


app.command("search")(search)
app.command("serve")(serve)
app.command("plan")(plan)


@app.command()
def info(
    index: Index = None,
    url: Url = None,
    collection: Collection = "images",
    as_json: Json = False,
) -> None:
    """Say what a collection holds and what wrote it."""
    from edje_qdrant.index.engines import engine_of

    where = where_is(index, url)
    with open_collection(where, collection) as opened:
        contract = opened.contract
        data = {
            "points": opened.count(),
            "location": where,
            "name": opened.name,
            "engine": engine_of(opened.index),
            "model": contract.model,
            "tokens": f"{contract.num_tokens} x {contract.token_dim}, {contract.codec}, "
            f"in the {'side file' if opened.token_place == 'file' else 'payload'}",
            "bytes_per_image": opened.bytes_per_image(),
            "payload_indexes": (opened_indexes := opened.payload_indexes()),
            "contract": contract.as_dict(),
        }
    shown = {key: value for key, value in data.items() if key != "contract"}
    listed = [f"{field} ({kind})" for field, kind in opened_indexes.items()]
    shown["payload_indexes"] = ", ".join(listed) or "none"
    print_result(data, "\n".join(f"{key:<16} {value}" for key, value in shown.items()), as_json)


@app.command()
def convert(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="The published pytorch_model.pth.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write the model to.")],
    siglip: Annotated[
        str, typer.Option(metavar="PATH", help="Folder or hub id of the SigLIP it was trained on.")
    ],
    language_model: Annotated[
        str, typer.Option(metavar="PATH", help="Folder or hub id of its language model.")
    ],
    as_json: Json = False,
) -> None:
    """Turn a checkpoint in the published layout into a folder that --model takes."""
    silence_libraries()
    from edje_qdrant.model import EDJEModel

    model = EDJEModel.from_official_checkpoint(
        checkpoint, siglip_path=siglip, language_model_path=language_model, device="cpu"
    )
    model.save_pretrained(out)
    data = {"model": str(out), **model.config.as_dict()}
    text = f"wrote {out}; use it with: edje-qdrant ingest PICTURES --index FOLDER --model {out}"
    print_result(data, text, as_json)


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where images, index and results go.")
    ] = Path("edje-demo"),
    pictures: Annotated[int, typer.Option(help="Scenes to draw, 20 or more.")] = 1000,
    candidates: Annotated[
        int, typer.Option(help="Images of the first stage to rerank, 10 or more.")
    ] = 50,
    progress: Progress = None,
    as_json: Json = False,
) -> None:
    """Draw scenes, ingest them, search them, and show what reranking mends."""
    silence_libraries()
    from edje_qdrant.demo.run import run_demo

    report = run_demo(
        folder, pictures=pictures, num_candidates=candidates, progress=bar_shown(progress)
    )
    print_result(report.as_dict(), report.text(), as_json)


add_collection_commands(app)
add_pair_commands(app)
add_attach_commands(app)
app.command("train")(train)
app.command("export-onnx")(export_model)
app.command("eval", cls=EvalCommand)(evaluate)
app.command("calibrate")(calibrate)


def _ingest_text(report: IngestReport, points: int, prune: bool) -> str:
    pruned = f"{report.pruned} pruned, " if prune else ""
    lines = [
        f"{report.added} added, {report.skipped} there already, {pruned}"
        f"{len(report.failed)} failed in {report.seconds:.1f} s "
        f"({report.images_per_second:.1f} pictures/s); "
        f"the collection holds {points}"
    ]
    lines += [f"  {failure.path}: {failure.reason}" for failure in report.failed[:_FAILED_SHOWN]]
    if len(report.failed) > _FAILED_SHOWN:
        lines.append(f"  and {len(report.failed) - _FAILED_SHOWN} more, all listed by --json")
    return "\n".join(lines)
