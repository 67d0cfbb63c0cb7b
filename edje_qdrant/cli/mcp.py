"""Command `mcp`: a collection as tools for agents."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from socket import socket
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
    Device,
    Grpc,
    GrpcPort,
    Index,
    Model,
    Precision,
    Timeout,
    Url,
    place_of,
    service_keys,
)
from edje_qdrant.text import printable

if TYPE_CHECKING:
    from edje_qdrant.integrations.mcp.server import ImageServer

__all__ = ["mcp"]


def mcp(
    index: Index = None,
    url: Url = None,
    grpc: Grpc = False,
    grpc_port: GrpcPort = None,
    timeout: Timeout = 30,
    collection: Collection = "images",
    model: Model = None,
    device: Device = None,
    precision: Precision = "auto",
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of image files; only images of the collection in this folder are shown "
            "and explained.",
        ),
    ] = None,
    ingest_from: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Let agents add images of this folder; repeat it for more. Without it the "
            "collection is only read.",
        ),
    ] = None,
    http: Annotated[
        bool,
        typer.Option(
            "--http", help="Serve over HTTP (streamable HTTP, at /mcp), not stdin and stdout."
        ),
    ] = False,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="With --http: address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="With --http: port to listen on.")
    ] = 8001,
    without_key: Annotated[
        bool,
        typer.Option("--without-key", help="With --http: listen on a network without a key."),
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="With --http: host name by which the service may be called; repeat it for more. "
            "Any by default; on 127.0.0.1 only the machine's own names.",
        ),
    ] = None,
) -> None:
    """Serve a collection as tools for agents (Model Context Protocol).

    The tools are search_images, similar_images, rerank, explain, get_thumbnail and collection_info.
    With --http, EDJE_QDRANT_SERVICE_KEY holds the keys of which callers must send one, separated by
    commas.
    """
    from edje_qdrant.integrations.mcp.stdio import serve_stdio, stdout_to_stderr

    sockets: list[socket] = []
    if http:
        from edje_qdrant.web.installed import check_installed

        check_installed()
        from edje_qdrant.web.settings import check_exposure

        check_exposure(host, service_keys(), without_key=without_key)
        from edje_qdrant.web.serve import bound_sockets

        sockets = bound_sockets(host, port)  # before the model is loaded
    quiet: AbstractContextManager[None] = nullcontext() if http else stdout_to_stderr()
    place = place_of(index, url, grpc, grpc_port, timeout)
    with closing_all(sockets), open_collection(place, collection) as opened:
        with quiet:
            from edje_qdrant.integrations.mcp.server import create_server
            from edje_qdrant.integrations.mcp.tools import ImageTools
            from edje_qdrant.search.retriever import TwoStageRetriever

            if ingest_from:
                opened.require_writable()
            loaded = load_model(model, device, opened)
            retriever = TwoStageRetriever(opened, loaded, reranker=make_reranker(loaded, precision))
            tools = ImageTools(
                retriever, images=images, ingest=tuple(ingest_from or ()), whole_paths=not http
            )
            server = create_server(tools)
            note_demo_model(loaded)
        if http:
            _serve_http(server, host, sockets, allow_host or [], collection)
        else:
            serve_stdio(server)


def _serve_http(
    server: ImageServer, host: str, sockets: list[socket], allow_host: list[str], name: str
) -> None:
    """Serve over HTTP behind the checks of `serve`: host, origin, key, sizes."""
    from edje_qdrant.integrations.mcp.stdio import close_server
    from edje_qdrant.web.metrics import Metrics
    from edje_qdrant.web.middleware import ServiceMiddleware
    from edje_qdrant.web.serve import listen, serve_app
    from edje_qdrant.web.settings import ServiceSettings, allowed_hosts

    settings = ServiceSettings(
        api_keys=service_keys(), allowed_hosts=allowed_hosts(host, allow_host)
    )
    app = ServiceMiddleware(server.http_app(), settings=settings, metrics=Metrics(lambda: 0))
    address = address_of(host, listen(sockets))
    typer.echo(f"serving {printable(name)} at {address}/mcp", err=True)
    try:
        serve_app(app, sockets=sockets, grace=1.0)
    finally:
        close_server(server)
