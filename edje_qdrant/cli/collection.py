"""Commands on a collection: describe, check, repair, compact, delete, update."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from edje_qdrant.cli.confirm import EXAMPLES, DryRun, Yes, agreed, path_of
from edje_qdrant.cli.loading import (
    bar_shown,
    load_model,
    note_filter_problems,
    open_collection,
    print_result,
    shortened,
)
from edje_qdrant.cli.migration_lines import status_line
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
    fields_of,
    place_of,
)
from edje_qdrant.errors import ConfigError

if TYPE_CHECKING:
    from edje_qdrant.collection.collection import ImageCollection
    from edje_qdrant.index import Filter
    from edje_qdrant.maintenance import CompactReport, Finding

__all__ = [
    "compact",
    "delete",
    "info",
    "repair",
    "text_fields",
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
    from edje_qdrant.migration.status import migration_status

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
            "tokens": f"{contract.num_tokens} x {contract.token_dim}, "
            f"{contract.codec}{_came_from(opened.codec_history, contract.codec)}, "
            f"in the {'side file' if opened.token_place == 'file' else 'payload'}",
            "codec_history": [*opened.codec_history],
            "bytes_per_image": opened.bytes_per_image(),
            "payload_indexes": (opened_indexes := opened.payload_indexes()),
            "text_fields": (opened_fields := [*opened.text_fields]),
            "text_language": opened.text_language,
            "migration": None if (status := migration_status(opened)) is None else asdict(status),
            "contract": contract.as_dict(),
        }
    hidden = ("contract", "codec_history", "text_language")
    shown = {key: data[key] for key in data if key not in hidden}
    if status is None:
        del shown["migration"]
    else:
        shown["migration"] = status_line(status)
    listed = [f"{field} ({kind})" for field, kind in opened_indexes.items()]
    shown["payload_indexes"] = ", ".join(listed) or "none"
    named = ", ".join(opened_fields)
    shown["text_fields"] = f"{named} ({data['text_language']})" if named else "none"
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
        typer.Option(
            "--delete-others",
            help="Delete the points that another program put there; it shows how many there are "
            "and three of them, and asks.",
        ),
    ] = False,
    yes: Yes = False,
    progress: Progress = None,
    as_json: Json = False,
) -> None:
    """Encode images again whose tokens are lost, and drop orphans.

    Exit code 1 if some cannot be repaired.
    """
    from edje_qdrant.maintenance.repair import repair as repair_collection

    place = place_of(index, url, grpc, grpc_port, timeout)
    with open_collection(place, collection, for_repair=True) as opened:
        if delete_others:
            count, examples = _others(opened)
            what = f"{count:,} points of other programs would be deleted from {collection}"
            if count and not agreed(what, examples, count, yes=yes):
                typer.echo("nothing was changed", err=True)
                raise typer.Exit(1)
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
    if report.words:
        lines.append(f"words of {len(report.words)} images written")
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


def text_fields(
    fields: Annotated[
        str | None,
        typer.Argument(metavar="FIELD,...", help="Payload fields, such as caption,path."),
    ] = None,
    language: Annotated[
        str,
        typer.Option(
            "--text-language",
            metavar="LANGUAGE",
            help="Language of the texts, whose endings are cut off: english, german ... or none.",
        ),
    ] = "english",
    drop: Annotated[
        bool,
        typer.Option(
            "--drop",
            help="Drop all text fields instead: the words are deleted, the payloads stay, and "
            "search --hybrid is refused.",
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
    """Choose payload fields whose words search --hybrid finds.

    Words are written from stored payloads; no image is read. An interrupted run is continued by the
    next.
    """
    from edje_qdrant.maintenance import add_text_fields, drop_text_fields

    if drop and fields is not None:
        raise ConfigError(
            f"--drop drops all text fields; leave out {fields}, or leave out --drop to have these "
            "fields in place of the ones there are"
        )
    if not drop and fields is None:
        raise ConfigError("name payload fields, such as caption,path, or give --drop")
    place = place_of(index, url, grpc, grpc_port, timeout)
    if drop:
        with open_collection(place, collection) as opened:
            dropped = drop_text_fields(opened, wait=wait)
        text = f"text fields dropped: {', '.join(dropped)}; the payloads stay"
        lines = [text if dropped else "the collection has no text fields"]
        print_result({"dropped": [*dropped]}, lines, as_json)
        return
    with open_collection(place, collection) as opened:
        report = add_text_fields(
            opened,
            fields_of(fields) or [],
            language=language,
            progress=bar_shown(progress),
            wait=wait,
        )
    lines = [
        f"{report.with_words} of {report.images} images have words in {fields}; "
        f"{report.written} were written"
    ]
    print_result(asdict(report), lines, as_json)


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
    yes: Yes = False,
    dry_run: DryRun = False,
    index: Index = None,
    url: Url = None,
    grpc: Grpc = False,
    grpc_port: GrpcPort = None,
    timeout: Timeout = 30,
    collection: Collection = "images",
    as_json: Json = False,
) -> None:
    """Delete images by id or by payload.

    It shows how many there are and three of them, and asks. `compact` frees the space of their
    tokens.
    """
    if not ids and not where:
        raise ConfigError("say which images to delete: --id ID, or --where FIELD=VALUE")
    from edje_qdrant.index.where import filter_of

    # for_repair=True opens collections with damaged side files too.
    place = place_of(index, url, grpc, grpc_port, timeout)
    with open_collection(place, collection, for_repair=True) as opened:
        filter = filter_of(where) if where else None
        before = opened.count()
        count, examples = _chosen(opened, ids or [], filter)
        what = f"{count:,} of {before:,} images in the collection {collection!r} would be deleted"
        if count and agreed(what, examples, count, yes=yes, dry_run=dry_run):
            if ids:
                opened.delete(ids)
            if filter is not None:
                opened.delete_matching(filter)
            opened.flush()
        left = opened.count()
        if not count:
            note_filter_problems(opened, filter)
    if dry_run:
        _print_dry_run(count, examples, as_json)
        return
    data = {"deleted": before - left, "points": left}
    print_result(data, [f"{before - left} deleted; the collection holds {left}"], as_json)


def update(
    fields: Annotated[
        list[str],
        typer.Argument(
            metavar="FIELD=VALUE",
            help="VALUE is read as JSON if possible, else as text; a number beyond 64 bits is "
            "text.",
        ),
    ],
    ids: Ids = None,
    where: Where = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    index: Index = None,
    url: Url = None,
    grpc: Grpc = False,
    grpc_port: GrpcPort = None,
    timeout: Timeout = 30,
    collection: Collection = "images",
    as_json: Json = False,
) -> None:
    """Set payload fields of images.

    With --where it shows how many there are and three of them, and asks.
    """
    if not ids and not where:
        raise ConfigError("say which images to update: --id ID, or --where FIELD=VALUE")
    from edje_qdrant.index.where import field_of, filter_of

    payload = dict(field_of(text) for text in fields)
    place = place_of(index, url, grpc, grpc_port, timeout)
    with open_collection(place, collection, for_repair=True) as opened:
        chosen = opened.existing(ids or [])
        if where:
            chosen |= {*opened.ids(filter_of(where))}
        count = len(chosen)
        examples = _paths(opened, sorted(chosen)[:EXAMPLES])
        if count and (where or dry_run):
            names = ", ".join(payload)
            what = f"{names} of {count:,} images in the collection {collection!r} would be set"
            if not agreed(what, examples, count, yes=yes, dry_run=dry_run):
                chosen = set()
        if where and not count:
            note_filter_problems(opened, filter_of(where))
        if chosen:
            opened.update_payload(dict.fromkeys(sorted(chosen), payload))
            opened.flush()
    if dry_run:
        _print_dry_run(count, examples, as_json)
        return
    print_result({"updated": len(chosen)}, [f"{len(chosen)} updated"], as_json)


def _chosen(
    opened: ImageCollection, ids: list[str], filter: Filter | None
) -> tuple[int, list[str]]:
    """Return how many images have one of the ids or match the filter, and paths of some."""
    found = opened.existing(ids)
    if filter is None:
        return len(found), _paths(opened, [one for one in ids if one in found][:EXAMPLES])
    matching = next(opened.index.scroll(filter=filter, batch_size=EXAMPLES), [])
    examples = [path_of(point.id, point.payload) for point in matching]
    if not ids:
        return opened.count(filter), examples
    pages = opened.index.scroll(filter=filter, payload=False)
    found |= {point.id for page in pages for point in page}
    return len(found), examples or _paths(opened, sorted(found)[:EXAMPLES])


def _others(opened: ImageCollection) -> tuple[int, list[str]]:
    """Return how many points of other programs a collection holds, and paths or ids of some."""
    count, examples = 0, list[str]()
    for page in opened.index.scroll() if opened.index.shared else ():
        others = opened.of_other_programs(page)
        count += len(others)
        examples += [
            path_of(point.id, point.payload) for point in others[: EXAMPLES - len(examples)]
        ]
    return count, examples


def _paths(opened: ImageCollection, ids: list[str]) -> list[str]:
    payloads = opened.index.retrieve(ids, tokens=False)
    return [path_of(one, payloads.get(one, {})) for one in ids]


def _print_dry_run(count: int, examples: list[str], as_json: bool) -> None:
    """Print what would be changed; the question has shown it to people."""
    print_result(
        {"dry_run": True, "count": count, "examples": examples},
        [f"nothing was changed; without --dry-run it would be {count:,} images"],
        as_json,
    )


def _came_from(history: tuple[str, ...], codec: str) -> str:
    """Return what tokens went through, if they lost something: ` (from pq16)`."""
    lossy = [*dict.fromkeys(name for name in history if name not in ("float16", codec))]
    lossy = ["unknown codecs" if name == "unknown" else name for name in lossy]
    return f" (from {', '.join(lossy)})" if lossy else ""


def _findings(findings: tuple[Finding, ...]) -> list[str]:
    return shortened(f"{f.image_id} {f.path or ''}: {f.kind}: {f.detail}" for f in findings)


def _compacted(report: CompactReport) -> str:
    return (
        f"{report.moved} images' tokens moved; side files took {report.bytes_before:,} bytes, "
        f"now {report.bytes_after:,}"
    )
