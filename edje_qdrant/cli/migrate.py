"""The command that changes a collection's model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edje_qdrant.cli.confirm import Yes, agreed
from edje_qdrant.cli.help import note
from edje_qdrant.cli.loading import bar_shown, load_model, open_collection, print_result
from edje_qdrant.cli.migration_lines import agreement_line, named, report_lines
from edje_qdrant.cli.options import (
    Collection,
    Device,
    Grpc,
    GrpcPort,
    Index,
    Json,
    Progress,
    Timeout,
    Url,
    Wait,
    place_of,
)
from edje_qdrant.errors import CheckpointError, ConfigError
from edje_qdrant.files import read_if_exists

if TYPE_CHECKING:
    from edje_qdrant.collection.collection import ImageCollection
    from edje_qdrant.migration import Agreement, MigrationStatus
    from edje_qdrant.model import EDJEModel

__all__ = ["migrate"]


def migrate(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="The new model: its name, folder or hub id; by default the one that the migration "
            "began with.",
        ),
    ] = None,
    cut_over: Annotated[
        bool,
        typer.Option(
            "--cut-over",
            help="Catch up, then search with the new model from one moment on; it asks before.",
        ),
    ] = False,
    rollback: Annotated[
        bool,
        typer.Option(
            "--rollback",
            help="Remove what the migration made; after the cut-over, go back to the old model.",
        ),
    ] = False,
    drop_old: Annotated[
        bool,
        typer.Option("--drop-old", help="After the cut-over, delete the old vectors and tokens."),
    ] = False,
    leave_out_missing: Annotated[
        bool,
        typer.Option(
            "--leave-out-missing",
            help="Cut over although some images cannot be encoded; they are no longer in the "
            "collection then.",
        ),
    ] = False,
    grace: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="After the cut-over on a server, how long programs that have the collection open "
            "may go on to search with the old model.",
        ),
    ] = 30.0,
    texts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Compare the rankings for these texts, one a line; by default for captions among "
            "the images' fields.",
        ),
    ] = None,
    sample: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Texts to compare rankings for, at most; 0: none."),
    ] = 50,
    codec: Annotated[
        str | None,
        typer.Option(
            metavar="CODEC",
            help="Codec of the new tokens, or a file that fit-codec wrote; by default the one that "
            "the collection has.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Images encoded at a time; 32 on a CPU, else 64."),
    ] = None,
    yes: Yes = False,
    index: Index = None,
    url: Url = None,
    grpc: Grpc = False,
    grpc_port: GrpcPort = None,
    timeout: Timeout = 30,
    wait: Wait = 300,
    collection: Collection = "images",
    device: Device = None,
    progress: Progress = None,
    as_json: Json = False,
) -> None:
    """Change a collection's model while it is searched.

    It encodes the images again from their files, beside the old vectors and tokens, and continues
    a run that stopped; --cut-over changes over. Exit code 1 if some images cannot be encoded.
    """
    if sum([cut_over, rollback, drop_old]) > 1:
        raise ConfigError("give one of --cut-over, --rollback and --drop-old at a time")
    if leave_out_missing and not cut_over:
        raise ConfigError("--leave-out-missing is about --cut-over; give both")
    from edje_qdrant.migration.status import migration_status

    place = place_of(index, url, grpc, grpc_port, timeout)
    with open_collection(place, collection) as opened:
        if rollback or drop_old:
            _end(opened, migration_status(opened), drop_old, yes=yes, as_json=as_json)
            return
        status = migration_status(opened)
        chosen = _chosen_texts(opened, texts, sample)
        over = status is not None and status.state in ("settling", "kept")
        name = model
        if name is None and status is not None:
            name = status.model if over else status.other
        if name is None:
            raise ConfigError("no migration is under way; say which model to migrate to: --model")
        loaded = load_model(name, device, None)
        if over and cut_over and loaded.contract().model_key == opened.contract.model_key:
            _cut_over(opened, loaded, leave_out_missing, grace, batch_size, progress, wait, as_json)
            return
        from edje_qdrant.migration.encode_side import migrate as migrate_collection

        report = migrate_collection(
            opened, loaded, codec=codec, batch_size=batch_size, progress=bar_shown(progress),
            wait=wait,
        )  # fmt: skip
        lines = report_lines(report, loaded.name_or_path)
        agreement = _compared(opened, loaded, device, chosen) if chosen else None
        if agreement is not None:
            lines.append(agreement_line(agreement))
        elif sample and not chosen:
            lines.append("no captions are among the images' fields: compare rankings with --texts")
        data: dict[str, Any] = {
            **asdict(report),
            "agreement": None if agreement is None else asdict(agreement),
        }
        if not cut_over:
            lines.append("edje-qdrant migrate --cut-over changes over, --rollback removes it again")
            print_result(data, lines, as_json)
            if report.missing:
                raise typer.Exit(1)
            return
        typer.echo("\n".join(lines), err=True)
        what = f"{collection} would be searched with {named(loaded.name_or_path)} from now on"
        if report.missing and leave_out_missing:
            what += f", without the {len(report.missing):,} images that cannot be encoded"
        left_out = [m.path or m.image_id for m in report.missing] if leave_out_missing else []
        if not agreed(what, left_out, len(left_out), yes=yes):
            typer.echo("nothing was changed over", err=True)
            raise typer.Exit(1)
        _cut_over(
            opened, loaded, leave_out_missing, grace, batch_size, progress, wait, as_json, data
        )


def _cut_over(
    opened: ImageCollection,
    model: EDJEModel,
    leave_out_missing: bool,
    grace: float,
    batch_size: int | None,
    progress: bool | None,
    wait: float,
    as_json: bool,
    data: dict[str, Any] | None = None,
) -> None:
    from edje_qdrant.migration.change_over import cut_over

    report = cut_over(
        opened, model, leave_out_missing=leave_out_missing, grace=grace, batch_size=batch_size,
        progress=bar_shown(progress), wait=wait,
    )  # fmt: skip
    line = f"{opened.name} is searched with {named(report.model)} now: {report.images:,} images"
    if report.left_out:
        line += f"; {len(report.left_out):,} were left out"
    print_result(
        {**(data or {}), "cut_over": asdict(report)},
        [line, "edje-qdrant migrate --drop-old deletes the old side, --rollback goes back to it"],
        as_json,
    )


def _end(
    opened: ImageCollection,
    status: MigrationStatus | None,
    drop: bool,
    *,
    yes: bool,
    as_json: bool,
) -> None:
    """Drop the old side, or go back to it, after a question."""
    from edje_qdrant.migration.change_over import drop_old, rollback

    name, what = opened.name, ""
    if status is not None and drop:
        what = (
            f"the side of {named(status.other)} of {name}, {status.other_images:,} images, would "
            "be deleted; there is no way back to it then"
        )
    elif status is not None and status.state in ("settling", "kept"):
        what = (
            f"{name} would go back to {named(status.other)} and {status.other_images:,} images, as "
            "it was at the cut-over; what was ingested, changed and deleted since would be lost"
        )
    elif status is not None:
        what = (
            f"the {status.other_images:,} images of {name} that were encoded with "
            f"{named(status.other)} would be removed"
        )
    # Without a migration, the function says so.
    if what and not agreed(what, [], 0, yes=yes):
        typer.echo("nothing was changed", err=True)
        raise typer.Exit(1)
    count = drop_old(opened) if drop else rollback(opened)
    done = "old" if drop else "new"
    print_result({"removed": count}, [f"{count:,} images of the {done} side removed"], as_json)


def _chosen_texts(opened: ImageCollection, texts: Path | None, sample: int) -> list[str]:
    """Return the texts to compare rankings for: of a file, or captions of the collection.

    Raises:
        ConfigError: The file cannot be read, or holds no texts.
    """
    from edje_qdrant.migration.agreement import sample_texts

    if not sample:
        return []
    if texts is None:
        return sample_texts(opened, sample)
    content = read_if_exists(texts.expanduser(), "read")
    if content is None:
        raise ConfigError(f"--texts {texts} does not exist")
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ConfigError(f"--texts {texts} is not text in UTF-8: {error}") from error
    found = [line for line in lines if line]
    if not found:
        raise ConfigError(f"--texts {texts} holds no texts; write one on each line")
    return found[:sample]


def _compared(
    opened: ImageCollection, model: EDJEModel, device: str | None, texts: list[str]
) -> Agreement | None:
    """Compare the rankings of both models; None if the old one cannot be loaded."""
    from edje_qdrant.migration.agreement import compare_rankings

    try:
        old = load_model(None, device, opened)
    except (CheckpointError, ConfigError) as error:
        note(f"the rankings are not compared: {error}")
        return None
    return compare_rankings(opened, old, model, texts)
