"""Commands that store, move or recode whole collections: transcode, export, import, copy."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from edje_qdrant.cli.confirm import Yes, check_replaced
from edje_qdrant.cli.help import chosen_out, note
from edje_qdrant.cli.loading import (
    bar_shown,
    check_codec_file,
    load_model,
    open_collection,
    print_result,
)
from edje_qdrant.cli.options import (
    Collection,
    Device,
    Engine,
    Grpc,
    GrpcPort,
    Index,
    Json,
    Model,
    OutArgument,
    Place,
    Progress,
    TextFields,
    TextLanguage,
    Timeout,
    Url,
    Wait,
    fields_of,
    place_at,
    place_of,
)
from edje_qdrant.errors import CollectionNotFoundError, ConfigError

if TYPE_CHECKING:
    from edje_qdrant.index import Engine as EngineName
    from edje_qdrant.maintenance import CopyReport

__all__ = ["copy", "export", "fit_codec", "import_", "transcode"]


def transcode(
    codec: Annotated[
        str, typer.Argument(metavar="CODEC", help="A codec's name, or a file that fit-codec wrote.")
    ],
    from_lossy: Annotated[
        bool,
        typer.Option(
            "--from-lossy",
            help="Convert also from a lossy codec to one that takes more bytes. The quality does "
            "not improve: what the lossy codec dropped is gone.",
        ),
    ] = False,
    index: Index = None,
    url: Url = None,
    grpc: Grpc = False,
    grpc_port: GrpcPort = None,
    timeout: Timeout = 30,
    wait: Wait = 300,
    collection: Collection = "images",
    progress: Progress = None,
    as_json: Json = False,
) -> None:
    """Store tokens with another codec, without encoding images again."""
    from edje_qdrant.collection.checks import named_codec
    from edje_qdrant.maintenance import fit_codec as fit
    from edje_qdrant.maintenance import transcode as transcode_collection

    place = place_of(index, url, grpc, grpc_port, timeout)
    with open_collection(place, collection) as opened:
        found = named_codec(codec, opened.contract)
        if not found.fitted:
            # An interrupted run continues with the codebook that it had fitted.
            found = (
                opened.codec
                if opened.codec.name == found.name
                else fit(opened, found.name, wait=wait)
            )
        shrinks = found.nbytes <= opened.codec.nbytes
        if found.name != "float16" and found.key != opened.codec.key and shrinks and opened.count():
            note(
                f"{found.name} is lossy, and there is no way back from it to {opened.codec.name}; "
                "edje-qdrant export keeps the tokens as they are"
            )
        report = transcode_collection(
            opened, found, from_lossy=from_lossy, progress=bar_shown(progress), wait=wait
        )
        nbytes = opened.bytes_per_image()
    data = {**asdict(report), "codec": found.key, "bytes_per_image": nbytes}
    text = f"{report.moved} images now in {found.name}, {nbytes:,} bytes each"
    if report.unreadable:
        text += f"; {len(report.unreadable)} cannot be read: run `edje-qdrant repair`"
    text += _left_out(report.left_out)
    print_result(data, [text], as_json)
    if report.unreadable:
        raise typer.Exit(1)


def fit_codec(
    codec: Annotated[str, typer.Argument(metavar="CODEC", help="pq16, pq24, pq32 or pq48.")],
    out_argument: OutArgument = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write, .safetensors.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            metavar="SOURCE",
            help="Fit to the images of a folder or manifest, not to a collection.",
        ),
    ] = None,
    yes: Yes = False,
    index: Index = None,
    url: Url = None,
    grpc: Grpc = False,
    grpc_port: GrpcPort = None,
    timeout: Timeout = 30,
    wait: Wait = 300,
    collection: Collection = "images",
    model: Model = None,
    device: Device = None,
    sample: Annotated[
        int, typer.Option(metavar="N", help="Number of images, drawn at random.")
    ] = 2048,
    progress: Progress = None,
    as_json: Json = False,
) -> None:
    """Fit a codec's codebook, for the --codec of other commands."""
    from edje_qdrant.tokens.codec_file import write_codec

    out = chosen_out(out, out_argument)
    check_codec_file(codec, out)
    check_replaced(out, yes=yes)
    if source is not None:
        from edje_qdrant.ingest.ingest import fit_codec_to_source

        loaded = load_model(model, device, None)
        contract = loaded.contract()
        fitted = fit_codec_to_source(
            source, loaded, codec, sample=sample, progress=bar_shown(progress)
        )
    else:
        from edje_qdrant.maintenance import fit_codec as fit

        place = place_of(index, url, grpc, grpc_port, timeout)
        with open_collection(place, collection) as opened:
            contract = opened.contract
            fitted = fit(opened, codec, sample=sample, wait=wait)
    write_codec(fitted, out, contract=contract)
    data = {"codec": fitted.key, "path": str(out), "bytes_per_image": fitted.nbytes}
    print_result(
        data, [f"wrote {out}: {fitted.key}, {fitted.nbytes:,} bytes an image; use it with --codec"],
        as_json,
    )  # fmt: skip


def export(
    out_argument: OutArgument = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Archive to write.")] = None,
    index: Index = None,
    url: Url = None,
    grpc: Grpc = False,
    grpc_port: GrpcPort = None,
    timeout: Timeout = 30,
    wait: Wait = 300,
    collection: Collection = "images",
    progress: Progress = None,
    as_json: Json = False,
) -> None:
    """Write a collection to one file: points, tokens and contract."""
    from edje_qdrant.maintenance import export_collection

    archive = chosen_out(out, out_argument)
    place = place_of(index, url, grpc, grpc_port, timeout)
    with open_collection(place, collection) as opened:
        report = export_collection(opened, archive, progress=bar_shown(progress), wait=wait)
    size = archive.expanduser().stat().st_size
    data = {**asdict(report), "path": str(archive), "bytes": size}
    text = f"wrote {report.copied} images to {archive}{_left_out(report.left_out)}"
    print_result(data, [text], as_json)


def import_(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="File that export wrote.")],
    index: Index = None,
    url: Url = None,
    grpc: Grpc = False,
    grpc_port: GrpcPort = None,
    timeout: Timeout = 30,
    wait: Wait = 300,
    collection: Collection = "images",
    progress: Progress = None,
    as_json: Json = False,
) -> None:
    """Create a collection from an exported file.

    It continues an import that stopped.
    """
    from edje_qdrant.maintenance import import_collection

    place = place_of(index, url, grpc, grpc_port, timeout)
    report = import_collection(
        archive, place.location, collection, progress=bar_shown(progress), wait=wait, **place.server
    )
    with open_collection(place, collection) as imported:
        points = imported.count()
    print_result(asdict(report), [_copied(report, place.location, points)], as_json)


def copy(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder or address.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Folder or address.")],
    collection: Collection = "images",
    new_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The copy's name; the same by default.")
    ] = None,
    tokens_folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep the copy's tokens in side files in this folder, not in the server's "
            "payload.",
        ),
    ] = None,
    engine: Engine = None,
    text_fields: TextFields = None,
    text_language: TextLanguage = None,
    grpc: Grpc = False,
    grpc_port: GrpcPort = None,
    timeout: Timeout = 30,
    wait: Wait = 300,
    progress: Progress = None,
    as_json: Json = False,
) -> None:
    """Copy a collection, such as from a folder to a server."""
    from edje_qdrant.collection.collection import ImageCollection
    from edje_qdrant.index.engines import check_engine
    from edje_qdrant.maintenance import copy_collection

    name = new_name or collection
    if ":memory:" in (source, target):
        raise ConfigError(
            "a collection in :memory: is gone when the command ends; give a folder or an address"
        )
    check_engine(engine, folder="://" not in target)
    if (_place(source), collection) == (_place(target), name):
        raise ConfigError("source and target are the same collection; give --new-name")
    of_source, of_target = _servers(source, target, grpc, grpc_port, timeout)
    with open_collection(of_source, collection) as opened:
        server = of_target.server
        words = fields_of(text_fields)
        if words is None and engine != "faiss":  # which keeps none
            words = [*opened.text_fields] or None
        language = text_language or (opened.text_language if opened.text_fields else "english")
        try:
            copied = ImageCollection.open(target, name, tokens_folder=tokens_folder, **server)
        except CollectionNotFoundError:
            copied = ImageCollection.create(
                target, name, opened.contract, codec=opened.codec,
                tokens=None if tokens_folder is None else "file",
                tokens_folder=tokens_folder, engine=cast("EngineName | None", engine),
                text_fields=words, text_language=language,
                **server,
            )  # fmt: skip
        with copied:
            report = copy_collection(opened, copied, progress=bar_shown(progress), wait=wait)
            points = copied.count()
    print_result(asdict(report), [_copied(report, target, points)], as_json)


def _servers(
    source: str, target: str, grpc: bool, grpc_port: int | None, timeout: int
) -> list[Place]:
    """Return two places; what is about servers applies to those that are one."""
    if "://" not in source and "://" not in target:
        place_at(target, grpc, grpc_port, timeout)
    return [
        place_at(place, grpc, grpc_port, timeout)
        if "://" in place
        else place_at(place, grpc=False, grpc_port=None, timeout=timeout)
        for place in (source, target)
    ]


def _place(location: str) -> str:
    return location if "://" in location else str(Path(location).expanduser().resolve())


def _copied(report: CopyReport, where: str, points: int) -> str:
    """Return a line on a copy; `points` are in the target, maybe of another source, too."""
    others = points - report.copied - report.skipped
    return (
        f"{report.copied} images copied to {where}, {report.skipped} were there already"
        + (f", beside {others:,} others" if others > 0 else "")
        + _left_out(report.left_out)
    )


def _left_out(ids: tuple[str, ...]) -> str:
    """Return the end of a line that names the points of other programs; empty if there are none."""
    if not ids:
        return ""
    shown = ", ".join(ids[:3]) + (" ..." if len(ids) > 3 else "")
    return f"; {len(ids)} points of other programs left out ({shown})"
