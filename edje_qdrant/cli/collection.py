"""Commands on a collection: describe, check, repair, compact, delete, update."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from edje_qdrant.cli.loading import (
    bar_shown,
    load_model,
    open_collection,
    print_result,
    shortened,
)
from edje_qdrant.cli.options import (
    Collection,
    Device,
    Grpc,
    GrpcPort,
    Index,
    Json,
    Model,
    Progress,
    Timeout,
    Url,
    Wait,
    Where,
    place_of,
)
from edje_qdrant.errors import ConfigError

if TYPE_CHECKING:
    from edje_qdrant.maintenance import CompactReport, Finding

__all__ = [
    "compact",
    "delete",
    "info",
    "repair",
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
    files: Annotated[
        bool,
        typer.Option(
            "--files",
            help="Read the image files too and compare them; encode a sample of them again.",
        ),
    ] = False,
    sample: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="With --files, how many images are encoded again; 0: none."
        ),
    ] = 64,
    model: Model = None,
    device: Device = None,
    progress: Progress = None,
    as_json: Json = False,
) -> None:
    """Check that the tokens of every image can be read.

    Exit code 1 if some cannot.
    """
    from edje_qdrant.maintenance import verify as verify_collection

    place = place_of(index, url, grpc, grpc_port, timeout)
    with open_collection(place, collection, for_repair=True) as opened:
        loaded = load_model(model, device, opened) if files and sample else None
        report = verify_collection(
            opened,
            images=files,
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
    """Encode images again whose tokens are lost, and drop orphans.

    Exit code 1 if some cannot be repaired.
    """
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


def _findings(findings: tuple[Finding, ...]) -> list[str]:
    return shortened(f"{f.image_id} {f.path or ''}: {f.kind}: {f.detail}" for f in findings)


def _compacted(report: CompactReport) -> str:
    return (
        f"{report.moved} images' tokens moved; side files took {report.bytes_before:,} bytes, "
        f"now {report.bytes_after:,}"
    )
