"""Command `ingest`: add images to a collection."""

from __future__ import annotations

from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edje_qdrant.cli.confirm import Yes, agreed
from edje_qdrant.cli.help import NEW_COLLECTION, READING, note
from edje_qdrant.cli.ingest_summary import (
    counts_of,
    failure_groups,
    kept_lines,
    left_out_lines,
    next_steps,
    old_version_lines,
    place_options,
)
from edje_qdrant.cli.loading import (
    all_failed,
    bar_shown,
    note_demo_model,
    open_or_create,
    print_result,
)
from edje_qdrant.cli.options import (
    BatchSize,
    Codec,
    Collection,
    DecodeMemory,
    DecodeSeconds,
    Device,
    Engine,
    Grpc,
    GrpcPort,
    Index,
    Json,
    MaxPixels,
    Model,
    OnDisk,
    Place,
    Progress,
    Quantization,
    Replicas,
    Shards,
    TextFields,
    TextLanguage,
    Timeout,
    Url,
    Wait,
    Workers,
    fields_of,
    indexes_of,
    place_of,
    settings_of,
)
from edje_qdrant.errors import ConfigError

if TYPE_CHECKING:
    from edje_qdrant.ingest.ocr import TextsReport
    from edje_qdrant.model import EDJEModel
    from edje_qdrant.tokens.codecs import Codec as FittedCodec
    from edje_qdrant.types import IngestReport

__all__ = ["ingest"]

_DATES = {"taken_at": "datetime", "modified_at": "datetime"}


def ingest(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Folder of images, an image, a film, a PDF, a manifest (.jsonl, .txt), tar or "
            "Parquet files (shard-*.tar, 'shard-{0000..0009}.tar'), a saved Hugging Face data set, "
            "or an address of one of them (https://, s3://, gs://, hf://).",
        ),
    ],
    index: Index = None,
    url: Url = None,
    grpc: Grpc = False,
    grpc_port: GrpcPort = None,
    timeout: Timeout = 30,
    wait: Wait = 300,
    collection: Collection = "images",
    model: Model = None,
    codec: Codec = None,
    engine: Engine = None,
    shards: Shards = None,
    replicas: Replicas = None,
    quantization: Quantization = None,
    on_disk: OnDisk = None,
    device: Device = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    max_pixels: MaxPixels = 178_956_970,
    decode_memory: DecodeMemory = 1536,
    decode_seconds: DecodeSeconds = 60.0,
    processes: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            rich_help_panel=READING,
            help="Worker processes that decode and encode, each with its own copy of the model; "
            "0: all work in this process.",
        ),
    ] = 0,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE,...",
            rich_help_panel=READING,
            help="Devices of the worker processes, in turn: cuda:0,cuda:1. Without --processes, "
            "one process per device.",
        ),
    ] = None,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="Delete images that are no longer in the source, unless another ingest found a "
            "copy elsewhere; at the end it shows how many there are and three of them, and asks.",
        ),
    ] = False,
    yes: Yes = False,
    payload_index: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=KIND",
            rich_help_panel=NEW_COLLECTION,
            help="Index a payload field for fast filters; KIND is keyword, integer, float, bool, "
            "datetime, geo, text or uuid. Repeat it for more fields.",
        ),
    ] = None,
    text_fields: TextFields = None,
    text_language: TextLanguage = None,
    exif: Annotated[
        bool,
        typer.Option(
            "--exif/--no-exif",
            help="Store what new images' files know in the payload: taken_at, camera, lens, "
            "file_size, modified_at.",
        ),
    ] = True,
    gps: Annotated[
        bool,
        typer.Option("--gps", help="Store where new images were taken, too, as place."),
    ] = False,
    ocr: Annotated[
        bool,
        typer.Option(
            "--ocr",
            help="Then read the text in images that were not read before, and store it as ocr. "
            "Needs the extra ocr.",
        ),
    ] = False,
    frames_every: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Add the frames of films, so far apart: 2s, 500ms, 1m, or seconds. Without it, "
            "films are left out. Needs the extra video.",
        ),
    ] = None,
    pdf_pages: Annotated[
        bool,
        typer.Option(
            "--pdf-pages",
            help="Add the pages of PDF documents in the folder; those of one that is the source, "
            "or named in a manifest, are added anyway. Needs the extra pdf.",
        ),
    ] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Then keep the collection the same as the folder, until Ctrl-C: add, update and "
            "delete images as their files change. Needs the extra watch.",
        ),
    ] = False,
    progress: Progress = None,
    as_json: Json = False,
) -> None:
    """Add images to a collection, created if it is missing.

    Exit code 1 if every image failed.
    """
    from edje_qdrant.index import check_text_fields
    from edje_qdrant.ingest.file_fields import FileFields
    from edje_qdrant.ingest.ingest import fit_codec_to_source, ingest_images
    from edje_qdrant.ingest.process_pool import check_devices
    from edje_qdrant.sources.open import open_files, open_source

    source = sources[0]
    text_reader = None
    if ocr:
        from edje_qdrant.ingest.ocr import RapidOcrReader, read_texts

        if watch:
            raise ConfigError(
                "--ocr reads texts once, and --watch never ends; ingest with --ocr from time to "
                "time, without --watch"
            )
        text_reader = RapidOcrReader()
    if watch:
        from edje_qdrant.ingest.watch import check_watched

        check_watched(Path(source))
    place = place_of(index, url, grpc, grpc_port, timeout)
    # Before a collection is created. A folder that is watched may be empty at first, but not if its
    # other images would be deleted.
    if len(sources) > 1:
        images = open_files(sources)
    else:
        images = open_source(
            source,
            frames_every=frames_every,
            pdf_pages=pdf_pages,
            may_be_empty=watch and not prune,
        )
    FileFields(exif, gps)
    indexes = indexes_of(payload_index or [])
    qdrant = settings_of(shards, replicas, quantization, on_disk)
    words = fields_of(text_fields)
    if text_language is not None and words is None:
        raise ConfigError("--text-language is for --text-fields; give it too")
    check_text_fields(words, text_language or "english")
    shown = bar_shown(progress)
    places = None if devices is None else [name.strip() for name in devices.split(",")]
    if device is not None and places is not None:
        raise ConfigError("give --device or --devices, not both")
    check_devices(processes, places, "cpu")
    device = places[0] if places is not None else device

    def fit(loaded: EDJEModel, name: str) -> FittedCodec:
        size = batch_size or 32
        return fit_codec_to_source(images, loaded, name, batch_size=size, progress=shown)

    unasked: list[str] = []

    def agree(count: int, examples: list[str]) -> bool:
        what = (
            f"{count:,} images in the collection {collection!r} are no longer in "
            f"{source if len(sources) == 1 else images.name} and "
            "would be deleted"
        )
        try:
            return agreed(what, examples, count, yes=yes)
        except ConfigError as error:  # no terminal; what was added is reported first
            unasked.append(str(error))
            return False

    target, loaded = open_or_create(
        place, collection, model, device, codec, fit, engine, qdrant, words, text_language
    )
    with target:
        note_demo_model(loaded)
        # The page shows images newest first with these; of a large collection they take a while.
        dates = _DATES if exif and not target.count() else {}
        target.create_payload_indexes({**dates, **indexes})
        report = ingest_images(
            images,
            target,
            loaded,
            batch_size=batch_size,
            workers=workers,
            max_pixels=max_pixels,
            decode_memory=decode_memory << 20,
            decode_seconds=decode_seconds,
            progress=shown,
            prune=agree if prune else False,
            processes=processes,
            devices=places,
            exif=exif,
            gps=gps,
            wait=wait,
        )
        texts = None
        if text_reader is not None:
            texts = read_texts(
                target, text_reader, max_pixels=max_pixels, progress=shown, wait=wait
            )
            if target.text_fields and "ocr" not in target.text_fields:
                names = ",".join([*target.text_fields, "ocr"])
                note(
                    "ocr is not among the text fields, so its words are not searched; add it: "
                    f"edje-qdrant text-fields {names}"
                )
        _print_summary(
            report,
            source,
            place,
            collection,
            loaded,
            target.count(),
            prune=prune,
            as_json=as_json,
            texts=texts,
        )
        if unasked:
            raise ConfigError(unasked[0])
        if watch:
            from edje_qdrant.cli.watching import keep_watching
            from edje_qdrant.images import DecodeLimits, default_workers
            from edje_qdrant.model.pixels import default_batch_size

            keep_watching(
                Path(source),
                target,
                loaded,
                limits=DecodeLimits(
                    workers or default_workers(), decode_memory << 20, decode_seconds, max_pixels
                ),
                file_fields=FileFields(exif, gps),
                frames_every=frames_every,
                pdf_pages=pdf_pages,
                batch_size=batch_size or default_batch_size(loaded.device),
                wait=wait,
                failed=report.failed,
                as_json=as_json,
            )
        elif all_failed(report):
            raise typer.Exit(1)


def _print_summary(
    report: IngestReport,
    source: str,
    place: Place,
    collection: str,
    loaded: EDJEModel,
    points: int,
    *,
    prune: bool,
    as_json: bool,
    texts: TextsReport | None = None,
) -> None:
    data = {
        "added": report.added,
        "updated": report.updated,
        "skipped": report.skipped,
        "known": report.known,
        "twice": report.twice,
        "failed": [asdict(failure) for failure in report.failed],
        "failed_by_reason": report.failed_by_reason,
        "left_out": dict(report.left_out),
        "pruned": report.pruned,
        "old_versions": report.old_versions,
        "kept_elsewhere": report.kept_elsewhere,
        "seconds": round(report.seconds, 3),
        "images_per_second": round(report.images_per_second, 2),
        "points": points,
        "location": place.location,
        "name": collection,
        "model": loaded.name_or_path,
    }
    if texts is not None:
        data["ocr"] = asdict(texts)
    lines = [
        counts_of(report, prune=prune, points=points),
        *failure_groups(report.failed),
        *left_out_lines(report.left_out),
        *old_version_lines(report),
        *kept_lines(report),
    ]
    if texts is not None:
        lines.append(
            f"text read in {texts.read} images, found in {texts.with_text}; {texts.known} were "
            f"read before, {len(texts.failed)} failed"
        )
        lines += failure_groups(texts.failed)
    if all_failed(report) and not points:
        lines.append(
            f"every image failed, and the collection {collection} at {place.location} was left "
            f"empty; an ingest with the model {loaded.name_or_path} can fill it"
        )
    lines += next_steps(
        report,
        source,
        place_options(place, collection),
        points=points,
        model=loaded.name_or_path or "",
        web=find_spec("fastapi") is not None,
    )
    print_result(data, lines, as_json)
