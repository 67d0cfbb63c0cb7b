"""ASGI application of the service: routes, middleware, error handlers, page."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Response, Security
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import HTTPBearer
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles

from edje_qdrant.checks import check_kind
from edje_qdrant.errors import ConfigError
from edje_qdrant.model.named import model_note
from edje_qdrant.search.options import NUM_CANDIDATES
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.version import __version__
from edje_qdrant.web.client_routes import client_routes
from edje_qdrant.web.errors import RequestError, add_error_handlers
from edje_qdrant.web.field_routes import field_routes
from edje_qdrant.web.follow import AliasFollower, Load
from edje_qdrant.web.image_routes import image_routes
from edje_qdrant.web.limits import with_limits
from edje_qdrant.web.middleware import ServiceMiddleware
from edje_qdrant.web.schemas import CollectionInfo, ErrorBody, HealthBody
from edje_qdrant.web.search_routes import search_routes
from edje_qdrant.web.service import Service
from edje_qdrant.web.serving import HoldingMiddleware
from edje_qdrant.web.settings import ServiceSettings
from edje_qdrant.web.watching import ServiceWatch

__all__ = ["create_app"]

_STATIC = Path(__file__).parent / "static"
_METRICS = "text/plain; version=0.0.4; charset=utf-8"
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": what}
    for status, what in {
        400: "An option is not valid.",
        401: "The key is missing or wrong.",
        404: "There is no such image.",
        413: "The request is too large.",
        422: "The request has another form than the schema, or an image cannot be read.",
        500: "The collection or the model is damaged.",
        501: "The model cannot do this, or an extra is not installed.",
        429: "The index takes no more requests for now; see Retry-After.",
        503: "The service is too busy, the index does not answer, or the collection is gone.",
        504: "The time limit was reached.",
    }.items()
}


class _PageFiles(StaticFiles):
    """The page's files; a path with a null character names none, in every version of Starlette."""

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """Return the full path and the file's status, None if there is no such file."""
        return ("", None) if "\0" in path else super().lookup_path(path)


def create_app(
    retriever: TwoStageRetriever,
    settings: ServiceSettings | None = None,
    *,
    follow: Load | None = None,
) -> FastAPI:
    """Create the ASGI application that serves a collection.

    The application closes the retriever when it ends.

    Args:
        retriever: Answers the searches.
        settings: Keys and limits; the defaults of `ServiceSettings` if None.
        follow: Opens the collection by its name again when the name, an alias of a server, has been
            moved to another one; see `AliasFollower`. None stays with the collection opened.
    """
    check_kind("retriever", retriever, TwoStageRetriever, "a TwoStageRetriever")
    settings = ServiceSettings() if settings is None else settings
    check_kind("settings", settings, ServiceSettings, "ServiceSettings")
    service = Service(retriever, settings)
    follower = None if follow is None else AliasFollower(service, follow)
    watch = ServiceWatch(service) if settings.watch else None
    if watch is not None:
        retriever.collection.require_writable()
    if watch is not None and follower is not None:
        raise ConfigError(
            "a service that watches a folder cannot follow an alias to other collections; give "
            "--watch or --follow-alias"
        )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        if follower is not None:
            follower.start()
        if watch is not None:
            watch.start()
        yield
        if watch is not None:
            watch.close()
        if follower is not None:
            follower.close()
        service.close()

    app = FastAPI(
        title="edje-qdrant",
        version=__version__,
        summary="Text in, the right image out: two-stage image search on Qdrant.",
        docs_url=None,  # FastAPI's documentation pages load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat the Host header that was sent
        lifespan=lifespan,
        dependencies=[Security(HTTPBearer(auto_error=False))] if settings.api_keys else [],
    )
    app.state.service = service
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        return with_limits(describe(), settings)

    # FastAPI's own way to extend the document is to replace this method.
    app.openapi = openapi  # type: ignore[method-assign]
    add_error_handlers(app)
    app.include_router(search_routes(service, _ERRORS))
    app.include_router(client_routes(service, _ERRORS))
    app.include_router(image_routes(service, _ERRORS))
    app.include_router(field_routes(service, _ERRORS))
    app.include_router(_other_routes(service))
    app.mount("/static", _PageFiles(directory=_STATIC))
    app.add_middleware(HoldingMiddleware, served=service.served)
    app.add_middleware(ServiceMiddleware, settings=settings, metrics=service.metrics)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[*settings.cors_origins],
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-ID"],
            expose_headers=["X-Request-ID"],
        )
    return app


def _other_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    @router.get("/v1/collection", tags=["service"], responses=_ERRORS)
    async def info() -> CollectionInfo:
        """Describe the collection, the model and the service's limits."""
        settings, model = service.settings, service.retriever.model
        collection = service.retriever.collection
        return CollectionInfo(
            name=collection.name,
            resolved_name=collection.resolved_name,
            pictures=await service.read(collection.count),
            model=model.name_or_path,
            calibrated=model.calibration is not None,
            precision=service.retriever.precision,
            ingest=settings.ingest,
            explain=service.can_explain,
            max_top_k=settings.max_top_k,
            max_candidates=settings.max_candidates,
            max_text=settings.max_text,
            max_upload_bytes=settings.max_upload_bytes,
            max_files=settings.max_files,
            max_zip_files=settings.max_zip_files,
            num_candidates=min(NUM_CANDIDATES, settings.max_candidates),
            text_fields=[*collection.text_fields],
            model_note=model_note(model.name_or_path),
            version=__version__,
        )

    @router.get("/healthz", tags=["service"])
    async def alive() -> HealthBody:
        """Report that the process is alive."""
        return HealthBody(status="ok")

    @router.get("/readyz", tags=["service"], responses={503: {"model": ErrorBody}})
    async def ready() -> HealthBody:
        """Report whether the service can answer searches."""
        if not service.batcher.alive:
            raise RequestError(
                503,
                "NotReady",
                "the service is shutting down, or its search thread has failed; try again later",
            )
        await service.check_ready()
        return HealthBody(status="ready")

    @router.get("/metrics", tags=["service"], response_class=Response, responses=_METRICS_RESPONSE)
    async def metrics() -> Response:
        """Return the service's metrics for Prometheus."""
        return Response(service.metrics.text(), media_type=_METRICS)

    return router


_METRICS_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {}}, "description": "Prometheus's text format."},
    401: {"model": ErrorBody},
}
