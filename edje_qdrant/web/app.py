"""Put the service together: routes, guard, page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Response, Security
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import HTTPBearer
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles

from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.version import __version__
from edje_qdrant.web.errors import Refusal, add_fault_handlers
from edje_qdrant.web.image_routes import image_routes
from edje_qdrant.web.middleware import Guard
from edje_qdrant.web.schemas import CollectionInfo, ErrorBody, HealthBody
from edje_qdrant.web.search_routes import search_routes
from edje_qdrant.web.service import Service
from edje_qdrant.web.settings import ServiceSettings

__all__ = ["create_app"]

_STATIC = Path(__file__).parent / "static"
_METRICS = "text/plain; version=0.0.4; charset=utf-8"
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": what}
    for status, what in {
        400: "An option cannot be used.",
        401: "The key is missing or wrong.",
        404: "There is no such image.",
        413: "Too large.",
        422: "The request is not of the form asked for, or an image cannot be read.",
        500: "The collection or the model is damaged.",
        501: "The model cannot do this, or a part is not installed.",
        503: "Too busy, or the engine is away.",
        504: "Not done in time.",
    }.items()
}


def create_app(retriever: TwoStageRetriever, settings: ServiceSettings | None = None) -> FastAPI:
    """Make the ASGI application that serves a collection.

    The retriever is closed when the application ends.

    Args:
        retriever: Which searches.
        settings: Keys and limits; the defaults where none are given.
    """
    settings = settings or ServiceSettings()
    service = Service(retriever, settings)

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="edje-qdrant",
        version=__version__,
        summary="Text in, the right image out: two-stage image search on Qdrant.",
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        lifespan=life,
        dependencies=[Security(HTTPBearer(auto_error=False))] if settings.api_keys else [],
    )
    app.state.service = service
    add_fault_handlers(app)
    app.include_router(search_routes(service, _REFUSALS))
    app.include_router(image_routes(service, _REFUSALS))
    app.include_router(_other_routes(service))
    app.mount("/static", StaticFiles(directory=_STATIC))
    app.add_middleware(Guard, settings=settings, measures=service.measures)
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
    collection = service.retriever.collection

    @router.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    @router.get("/v1/collection", tags=["service"], responses=_REFUSALS)
    async def info() -> CollectionInfo:
        """Say what is served, and within which limits."""
        settings, model = service.settings, service.retriever.model
        return CollectionInfo(
            name=collection.name,
            pictures=await service.read(collection.count),
            model=model.name_or_path,
            calibrated=model.calibration is not None,
            ingest=settings.ingest,
            explain=service.can_explain,
            max_top_k=settings.max_top_k,
            max_candidates=settings.max_candidates,
            max_text=settings.max_text,
            max_upload_bytes=settings.max_upload_bytes,
            version=__version__,
        )

    @router.get("/healthz", tags=["service"])
    async def alive() -> HealthBody:
        """Say that the process answers."""
        return HealthBody(status="ok")

    @router.get("/readyz", tags=["service"], responses={503: {"model": ErrorBody}})
    async def ready() -> HealthBody:
        """Say whether searches can be answered."""
        if not service.batcher.alive:
            raise Refusal(503, "NotReady", "the service is ending, or its thread has died")
        await service.read(collection.count)
        return HealthBody(status="ready")

    @router.get("/metrics", tags=["service"], response_class=Response, responses=_METRICS_RESPONSE)
    async def metrics() -> Response:
        """Return counts and times for Prometheus."""
        return Response(service.measures.text(), media_type=_METRICS)

    return router


_METRICS_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {}}, "description": "Prometheus's text format."},
    401: {"model": ErrorBody},
}
