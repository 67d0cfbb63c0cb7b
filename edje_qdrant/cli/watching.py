"""The part of `ingest --watch` after the ingest: keep the collection the same as the folder."""

from __future__ import annotations

import json
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edje_qdrant.cli.ingest_summary import failure_groups
from edje_qdrant.text import printable

if TYPE_CHECKING:
    from edje_qdrant.collection.collection import ImageCollection
    from edje_qdrant.images import DecodeLimits
    from edje_qdrant.ingest.file_fields import FileFields
    from edje_qdrant.model import EDJEModel
    from edje_qdrant.types import FailedImage

__all__ = ["keep_watching"]


def keep_watching(
    folder: Path,
    collection: ImageCollection,
    model: EDJEModel,
    *,
    limits: DecodeLimits,
    file_fields: FileFields,
    frames_every: str | None,
    pdf_pages: bool,
    batch_size: int,
    wait: float,
    failed: Collection[FailedImage],
    as_json: bool,
) -> None:
    """Keep a collection the same as a folder until Ctrl-C or SIGTERM; print what is done.

    Args:
        folder: The folder.
        collection: The collection, open.
        model: The collection's model.
        limits: Of the processes that decode.
        file_fields: The fields of payloads that are taken from the files.
        frames_every: Time from one frame of a film to the next; None leaves films out.
        pdf_pages: Whether pages of PDF documents are added.
        batch_size: Images encoded at a time.
        wait: Seconds to wait for a server that is away.
        failed: What the ingest before has told of already.
        as_json: Print each report as a line of JSON.
    """
    from edje_qdrant.ingest.watch import FolderWatch, WatchReport

    known = {*failed}

    def told(report: WatchReport) -> None:
        report = replace(report, failed=tuple(one for one in report.failed if one not in known))
        if report == WatchReport():
            return
        now = datetime.now().astimezone().replace(microsecond=0)
        points = collection.count()
        if as_json:
            typer.echo(json.dumps({"time": now.isoformat(), **asdict(report), "points": points}))
            return
        lines = [f"{now:%Y-%m-%d %H:%M:%S} {report}; the collection holds {points}"]
        lines += failure_groups(report.failed)[1:]
        typer.echo("\n".join(printable(line) for line in lines))

    with (
        _interrupted_by_sigterm(),
        FolderWatch(
            folder, collection, model, limits=limits, file_fields=file_fields,
            frames_every=frames_every, pdf_pages=pdf_pages, batch_size=batch_size, wait=wait,
        ) as watch,
    ):  # fmt: skip
        try:
            typer.echo(f"watching {printable(str(folder))}; Ctrl-C ends", err=True)
            watch.run(told)
        except KeyboardInterrupt:
            watch.close()
            collection.flush()
            typer.echo(f"stopped; the collection holds {collection.count()} images", err=True)


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
