"""Command `serve`: a collection over HTTP, with a search page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edje_qdrant.cli.loading import (
    address_of,
    closing_all,
    load_model,
    make_reranker,
    note_demo_model,
    open_collection,
)
from edje_qdrant.cli.options import (
    Collection,
    DecodeMemory,
    DecodeSeconds,
    Device,
    Grpc,
    GrpcPort,
    Index,
    MaxPixels,
    Model,
    Precision,
    Url,
    place_of,
    service_keys,
)
from edje_qdrant.errors import ConfigError
from edje_qdrant.text import printable

if TYPE_CHECKING:
    from edje_qdrant.search.retriever import TwoStageRetriever

__all__ = ["serve"]


def serve(
    index: Index = None,
    url: Url = None,
    grpc: Grpc = False,
    grpc_port: GrpcPort = None,
    collection: Collection = "images",
    model: Model = None,
    device: Device = None,
    precision: Precision = "auto",
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of image files; only images of the collection in this folder are shown. "
            "Repeat it for addresses below which images are shown, too: s3://bucket/photos/.",
        ),
    ] = None,
    ingest: Annotated[
        bool,
        typer.Option(
            "--ingest", help="Accept images over HTTP; they are stored in `uploads` in that folder."
        ),
    ] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Keep the collection the same as that folder: add, update and delete images as "
            "their files change.",
        ),
    ] = False,
    frames_every: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="With --watch: add the frames of films, so far apart: 2s, 500ms, 1m, or seconds. "
            "Needs the extra video.",
        ),
    ] = None,
    pdf_pages: Annotated[
        bool,
        typer.Option(
            "--pdf-pages",
            help="With --watch: add the pages of PDF documents. Needs the extra pdf.",
        ),
    ] = False,
    exif: Annotated[
        bool,
        typer.Option(
            "--exif/--no-exif",
            help="With --watch: store what new images' files know in the payload, as ingest does.",
        ),
    ] = True,
    gps: Annotated[
        bool,
        typer.Option("--gps", help="With --watch: store where new images were taken, too."),
    ] = False,
    follow_alias: Annotated[
        bool,
        typer.Option(
            "--follow-alias",
            help="When --collection, an alias of the server, is moved to another collection: load "
            "that one with the model that wrote it, then serve it, without a restart.",
        ),
    ] = False,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="Port to listen on.")
    ] = 8000,
    without_key: Annotated[
        bool,
        typer.Option("--without-key", help="Listen on a network address without a key."),
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
            metavar="NAME",
            help="Host name by which the service may be called; repeat it for "
            "more. Any by default; on 127.0.0.1 only the machine's own names.",
        ),
    ] = None,
    max_upload_mb: Annotated[
        int, typer.Option(min=1, metavar="MB", help="Largest request with images, in megabytes.")
    ] = 32,
    allow_fetch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="Fetch images of rerank and embeddings requests from this host: NAME, "
            "NAME:PORT or *.NAME; repeat it for more. None by default.",
        ),
    ] = None,
    image_cache_mb: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="MB",
            help="Memory for encodings of images in such requests, in megabytes.",
        ),
    ] = 128,
    max_pixels: MaxPixels = 50_000_000,
    decode_memory: DecodeMemory = 1536,
    decode_seconds: DecodeSeconds = 10.0,
    max_candidates: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most images that one search may rerank.")
    ] = 1000,
    timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="Time limit of one request, in seconds, and of the Qdrant server's answers to it.",
        ),
    ] = 30.0,
    batch: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most searches in one batch.")
    ] = 16,
    batch_wait_ms: Annotated[
        float,
        typer.Option(
            min=0, metavar="MS", help="How long the first search of a batch waits for others."
        ),
    ] = 2.0,
) -> None:
    """Serve a collection over HTTP, with a search page.

    Programs can search, rerank, ingest and read metrics. EDJE_QDRANT_SERVICE_KEY holds the keys of
    which callers must send one, separated by commas.
    """
    from edje_qdrant.web.installed import check_installed

    check_installed()
    from edje_qdrant.ingest.file_fields import FileFields
    from edje_qdrant.web.serve import bound_sockets, listen
    from edje_qdrant.web.serve import serve as run
    from edje_qdrant.web.settings import ServiceSettings, allowed_hosts, check_exposure

    keys = service_keys()
    check_exposure(host, keys, without_key=without_key)
    folder, addresses = _image_places(images or [])
    settings = ServiceSettings(
        images=folder,
        image_addresses=addresses,
        ingest=ingest,
        watch=watch,
        frames_every=frames_every,
        pdf_pages=pdf_pages,
        file_fields=FileFields(exif, gps),
        api_keys=keys,
        cors_origins=tuple(cors or ()),
        allowed_hosts=allowed_hosts(host, allow_host or ()),
        max_upload_bytes=max_upload_mb << 20,
        allow_fetch=tuple(allow_fetch or ()),
        image_cache_bytes=image_cache_mb << 20,
        max_pixels=max_pixels,
        decode_memory=decode_memory << 20,
        decode_seconds=decode_seconds,
        max_candidates=max_candidates,
        timeout=timeout,
        max_batch=batch,
        batch_wait_ms=batch_wait_ms,
    )
    place = place_of(index, url, grpc, grpc_port, max(1, math.ceil(timeout)))
    if follow_alias and "://" not in place.location:
        raise ConfigError("--follow-alias is for a server (--url); a folder has no aliases")

    def follow(before: TwoStageRetriever) -> TwoStageRetriever:
        """Open what the alias stands for now, with the loaded model if it wrote that too."""
        opened = open_collection(place, collection)
        try:
            if before.model.contract().model_key == opened.contract.model_key:
                return type(before)(opened, before.model, reranker=before.reranker)
            loaded = load_model(None, device, opened)
            return type(before)(opened, loaded, reranker=make_reranker(loaded, precision))
        except BaseException:
            opened.close()
            raise

    sockets = bound_sockets(host, port)  # before the model is loaded
    with closing_all(sockets), open_collection(place, collection) as opened:
        from edje_qdrant.search.retriever import TwoStageRetriever

        loaded = load_model(model, device, opened)
        reranker = make_reranker(loaded, precision)
        retriever = TwoStageRetriever(opened, loaded, reranker=reranker)
        note_demo_model(retriever.model)
        address = address_of(host, listen(sockets))
        typer.echo(f"serving {printable(collection)} at {address}", err=True)
        run(retriever, settings, follow=follow if follow_alias else None, sockets=sockets)


def _image_places(places: Sequence[str]) -> tuple[Path | None, tuple[str, ...]]:
    """Return the folder and the addresses of --images.

    Raises:
        ConfigError: There are several folders, or an address is of an unknown scheme.
    """
    from edje_qdrant.sources.uris import is_uri

    addresses = tuple(place for place in places if is_uri(place))
    folders = [place for place in places if place not in addresses]
    if len(folders) > 1:
        raise ConfigError(
            f"--images {folders[1]} is a second folder; give one folder that holds both, or "
            "addresses"
        )
    return (Path(folders[0]) if folders else None), addresses
