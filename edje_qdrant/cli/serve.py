"""The command `serve`: a collection over HTTP, with a page.

Nothing heavy is imported before the command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edje_qdrant.cli.loading import load_model, note_demo_model, open_collection
from edje_qdrant.cli.options import Collection, Device, Index, Model, Url, service_keys, where_is

__all__ = ["serve"]


def serve(
    index: Index = None,
    url: Url = None,
    collection: Collection = "images",
    model: Model = None,
    device: Device = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Show images of the collection that lie in this folder, and no others.",
        ),
    ] = None,
    ingest: Annotated[
        bool,
        typer.Option(
            "--ingest", help="Take images over HTTP too; they go to `uploads` in that folder."
        ),
    ] = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    without_key: Annotated[
        bool,
        typer.Option("--without-key", help="Serve a network though no key is set."),
    ] = False,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN", help="Let pages of this origin call the service; repeat it for more."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Answer only to this name; repeat it for more. Any, by default, "
            "except on 127.0.0.1, where only the machine's own names are known.",
        ),
    ] = None,
    max_upload_mb: Annotated[
        int, typer.Option(min=1, help="Megabytes of one request with images.")
    ] = 32,
    max_candidates: Annotated[
        int, typer.Option(min=1, help="Images that one search may rerank.")
    ] = 1000,
    timeout: Annotated[float, typer.Option(help="Seconds for one request.")] = 30.0,
    batch: Annotated[int, typer.Option(min=1, help="Searches done together, at most.")] = 16,
    batch_wait_ms: Annotated[
        float, typer.Option(min=0, help="How long the first of them waits for others.")
    ] = 2.0,
) -> None:  # fmt: skip
    """Serve a collection over HTTP: a page, search, rerank, ingest, metrics.

    Keys that callers must send are read from EDJE_QDRANT_SERVICE_KEY, separated by commas.
    """
    from edje_qdrant.web.serve import check_installed
    from edje_qdrant.web.serve import serve as run
    from edje_qdrant.web.settings import ServiceSettings, allowed_hosts, check_exposure

    check_installed()
    keys = service_keys()
    check_exposure(host, keys, without_key=without_key)
    settings = ServiceSettings(
        pictures=pictures,
        ingest=ingest,
        api_keys=keys,
        cors_origins=tuple(cors or ()),
        allowed_hosts=allowed_hosts(host, allow_host or ()),
        max_upload_bytes=max_upload_mb << 20,
        max_candidates=max_candidates,
        timeout=timeout,
        max_batch=batch,
        batch_wait_ms=batch_wait_ms,
    )
    with open_collection(where_is(index, url), collection) as opened:
        from edje_qdrant.search.retriever import TwoStageRetriever

        retriever = TwoStageRetriever(opened, load_model(model, device, opened))
        note_demo_model(retriever.model)
        typer.echo(f"serving {collection} at http://{_shown(host)}:{port}", err=True)
        run(retriever, settings, host=host, port=port)


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
