"""Commands on a collection: describe, check, repair, copy, recode, delete, update."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from edje_qdrant.cli.loading import (
    bar_shown,
    check_codec_file,
    load_model,
    open_collection,
    print_result,
    shortened,
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
    Place,
    Progress,
    Timeout,
    Url,
    Wait,
    Where,
    place_at,
    place_of,
)
from edje_qdrant.errors import CollectionNotFoundError, ConfigError

if TYPE_CHECKING:
    from edje_qdrant.index import Engine as EngineName
    from edje_qdrant.maintenance import CompactReport, CopyReport, Finding

__all__ = [
    "compact",
    "copy",
    "delete",
    "export",
    "fit_codec",
    "import_",
    "info",
    "repair",
    "transcode",
    "update",
    "verify",
]

Ids = Annotated[
    list[str] | None, typer.Option("--id", metavar="ID", help="Id of an image; repeat it for more.")
]


def info(
    index: Index = None,
    url: Url = None,
    grpc: Grpc = False,
    grpc_port: GrpcPort = None,
    timeout: Timeout = 30,
    collection: Collection = "images",
    as_json: Json = False,
) -> None:
    """Show what a collection holds and which model wrote it."""
    place = place_of(index, url, grpc, grpc_port, timeout)
    with open_collection(place, collection) as opened:
        contract = opened.contract
        data = {
            "points": opened.count(),
            "location": place.location,
            "name": opened.name,
            "resolved_name": opened.resolved_name,
            "engine": opened.index.engine,
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
    print_result(data, [f"{key:<16} {value}" for key, value in shown.items()], as_json)


def verify(
    index: Index = None,
    url: Url = None,
    grpc: Grpc = False,
    grpc_port: GrpcPort = None,
    timeout: Timeout = 30,
    wait: Wait = 300,
    collection: Collection = "images",
    images: Annotated[
        bool,
        typer.Option(
            "--images",
            help="Read the image files too and compare them; encode a sample of them again.",
        ),
    ] = False,
    sample: Annotated[
        int,
        typer.Option(min=0, help="With --images, how many images are encoded again; 0: none."),
    ] = 64,
    model: Model = None,
    device: Device = None,
    progress: Progress = None,
    as_json: Json = False,
) -> None:
    """Check that the tokens of every image can be read; exit with 1 if some cannot."""
    from edje_qdrant.maintenance import verify as verify_collection

    place = place_of(index, url, grpc, grpc_port, timeout)
    with open_collection(place, collection, for_repair=True) as opened:
        loaded = load_model(model, device, opened) if images and sample else None
        report = verify_collection(
            opened,
            images=images,
            model=loaded,
            sample=sample,
            progress=bar_shown(progress),
            wait=wait,
        )
    lines = [f"{report.points} images: {'all is well' if report.clean else 'NOT all is well'}"]
    lines += [f"  {count} {kind}" for kind, count in report.counts().items()]
    lines += _findings(report.findings)
    if report.orphan_records or report.unlisted_files:
        lines.append(
            f"  {report.orphan_records} records without a point take {report.orphan_bytes:,} "
            "bytes; `edje-qdrant compact` frees them"
        )
    print_result(report.as_dict(), lines, as_json)
    if not report.clean:
        raise typer.Exit(1)


def repair(
    index: Index = None,
    url: Url = None,
    grpc: Grpc = False,
    grpc_port: GrpcPort = None,
    timeout: Timeout = 30,
    wait: Wait = 300,
    collection: Collection = "images",
    model: Model = None,
    device: Device = None,
    delete_others: Annotated[
        bool,
        typer.Option("--delete-others", help="Delete the points that another program put there."),
    ] = False,
    progress: Progress = None,
    as_json: Json = False,
) -> None:
    """Encode images again whose tokens are lost, and drop orphans; 1 if some cannot be repaired."""
    from edje_qdrant.maintenance.repair import repair as repair_collection

    place = place_of(index, url, grpc, grpc_port, timeout)
    with open_collection(place, collection, for_repair=True) as opened:
        loaded = load_model(model, device, opened)
        report = repair_collection(
            opened, loaded, delete_others=delete_others, progress=bar_shown(progress), wait=wait
        )
    others = sum(finding.kind == "other program" for finding in report.left)
    broken = len(report.left) - others
    lines = [
        f"{len(report.encoded)} images encoded again, {broken} could not be repaired",
        *_findings(report.left),
    ]
    if report.deleted:
        lines.append(f"{len(report.deleted)} points of other programs deleted")
    if report.compacted.bytes_before:
        lines.append(_compacted(report.compacted))
    if others:
        lines.append(
            f"{others} points of other programs were left; `edje-qdrant repair --delete-others` "
            "deletes them"
        )
    if broken:
        lines.append(
            "put their files back, or delete the images with `edje-qdrant delete --id ID`; "
            "then run this again"
        )
    print_result(asdict(report), lines, as_json)
    if report.left:
        raise typer.Exit(1)


def compact(
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
    """Rewrite side files without the space that deleted images took."""
    from edje_qdrant.maintenance import compact as compact_collection

    # Damaged side files may be compacted: records that cannot be read stay in place.
    place = place_of(index, url, grpc, grpc_port, timeout)
    with open_collection(place, collection, for_repair=True) as opened:
        report = compact_collection(opened, progress=bar_shown(progress), wait=wait)
        in_files = opened.token_place == "file"
    text = (
        _compacted(report)
        if in_files
        else "tokens are in the payload; there are no side files to compact"
    )
    print_result(asdict(report), [text], as_json)


def transcode(
    codec: Annotated[
        str, typer.Argument(metavar="CODEC", help="A codec's name, or a file that fit-codec wrote.")
    ],
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
    """Store a collection's tokens with another codec, without encoding images again."""
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
        report = transcode_collection(opened, found, progress=bar_shown(progress), wait=wait)
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
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write, .safetensors.")],
    images: Annotated[
        Path | None,
        typer.Option(metavar="SOURCE", help="Fit to the images of a folder or manifest."),
    ] = None,
    index: Index = None,
    url: Url = None,
    grpc: Grpc = False,
    grpc_port: GrpcPort = None,
    timeout: Timeout = 30,
    wait: Wait = 300,
    collection: Collection = "images",
    model: Model = None,
    device: Device = None,
    sample: Annotated[int, typer.Option(help="Number of images, drawn at random.")] = 2048,
    progress: Progress = None,
    as_json: Json = False,
) -> None:
    """Fit a codec's codebook to images or to a collection, for other commands' --codec."""
    from edje_qdrant.tokens.codec_file import write_codec

    check_codec_file(codec, out)
    if images is not None:
        from edje_qdrant.ingest.ingest import fit_codec_to_source

        loaded = load_model(model, device, None)
        contract = loaded.contract()
        fitted = fit_codec_to_source(
            images, loaded, codec, sample=sample, progress=bar_shown(progress)
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
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="File to write.")],
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
    """Create a collection from an exported file, or continue an import that stopped."""
    from edje_qdrant.maintenance import import_collection

    place = place_of(index, url, grpc, grpc_port, timeout)
    report = import_collection(
        archive, place.location, collection, progress=bar_shown(progress), wait=wait, **place.server
    )
    print_result(asdict(report), [_copied(report, place.location)], as_json)


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
    grpc: Grpc = False,
    grpc_port: GrpcPort = None,
    timeout: Timeout = 30,
    wait: Wait = 300,
    progress: Progress = None,
    as_json: Json = False,
) -> None:
    """Copy a collection, for example from a folder to a server, without encoding again."""
    from edje_qdrant.collection.collection import ImageCollection
    from edje_qdrant.index.engines import check_engine
    from edje_qdrant.maintenance import copy_collection

    name = new_name or collection
    check_engine(engine, folder="://" not in target)
    if (_place(source), collection) == (_place(target), name):
        raise ConfigError("source and target are the same collection; give --new-name")
    of_source, of_target = _servers(source, target, grpc, grpc_port, timeout)
    with open_collection(of_source, collection) as opened:
        server = of_target.server
        try:
            copied = ImageCollection.open(target, name, tokens_folder=tokens_folder, **server)
        except CollectionNotFoundError:
            copied = ImageCollection.create(
                target, name, opened.contract, codec=opened.codec,
                tokens=None if tokens_folder is None else "file",
                tokens_folder=tokens_folder, engine=cast("EngineName | None", engine),
                **server,
            )  # fmt: skip
        with copied:
            report = copy_collection(opened, copied, progress=bar_shown(progress), wait=wait)
    print_result(asdict(report), [_copied(report, target)], as_json)


def delete(
    ids: Ids = None,
    where: Where = None,
    index: Index = None,
    url: Url = None,
    grpc: Grpc = False,
    grpc_port: GrpcPort = None,
    timeout: Timeout = 30,
    collection: Collection = "images",
    as_json: Json = False,
) -> None:
    """Delete images by id or by payload; `compact` frees the space of their tokens."""
    if not ids and not where:
        raise ConfigError("say which images to delete: --id ID, or --where FIELD=VALUE")
    from edje_qdrant.index.where import filter_of

    # for_repair=True opens collections with damaged side files too.
    place = place_of(index, url, grpc, grpc_port, timeout)
    with open_collection(place, collection, for_repair=True) as opened:
        before = opened.count()
        if ids:
            opened.delete(ids)
        if where:
            opened.delete_matching(filter_of(where))
        opened.flush()
        left = opened.count()
    data = {"deleted": before - left, "points": left}
    print_result(data, [f"{before - left} deleted; the collection holds {left}"], as_json)


def update(
    fields: Annotated[
        list[str],
        typer.Argument(
            metavar="FIELD=VALUE...",
            help="VALUE is read as JSON, else as text; so is a number beyond 64 bits.",
        ),
    ],
    ids: Ids = None,
    where: Where = None,
    index: Index = None,
    url: Url = None,
    grpc: Grpc = False,
    grpc_port: GrpcPort = None,
    timeout: Timeout = 30,
    collection: Collection = "images",
    as_json: Json = False,
) -> None:
    """Set payload fields of images."""
    if not ids and not where:
        raise ConfigError("say which images to update: --id ID, or --where FIELD=VALUE")
    from edje_qdrant.index.where import field_of, filter_of

    payload = dict(field_of(text) for text in fields)
    place = place_of(index, url, grpc, grpc_port, timeout)
    with open_collection(place, collection, for_repair=True) as opened:
        chosen = opened.existing(ids or [])
        if where:
            shared = opened.index.shared  # then payloads say whose points they are
            for page in opened.index.scroll(filter=filter_of(where), payload=shared):
                others = {point.id for point in opened.of_other_programs(page)}
                chosen |= {point.id for point in page} - others
        opened.update_payload(dict.fromkeys(sorted(chosen), payload))
        opened.flush()
    print_result({"updated": len(chosen)}, [f"{len(chosen)} updated"], as_json)


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


def _findings(findings: tuple[Finding, ...]) -> list[str]:
    return shortened(f"{f.image_id} {f.path or ''}: {f.kind}: {f.detail}" for f in findings)


def _compacted(report: CompactReport) -> str:
    return (
        f"{report.moved} images' tokens moved; side files took {report.bytes_before:,} bytes, "
        f"now {report.bytes_after:,}"
    )


def _copied(report: CopyReport, where: str) -> str:
    return (
        f"{report.copied} images copied to {where}, {report.skipped} were there already"
        + _left_out(report.left_out)
    )


def _left_out(ids: tuple[str, ...]) -> str:
    """Return the end of a line that names the points of other programs; empty if there are none."""
    if not ids:
        return ""
    shown = ", ".join(ids[:3]) + (" ..." if len(ids) > 3 else "")
    return f"; {len(ids)} points of other programs left out ({shown})"
