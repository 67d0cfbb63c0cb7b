"""Routes that show images, and that take new ones."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Query, Request, Response, UploadFile

from edje_qdrant.collection.collection import user_payload
from edje_qdrant.web.errors import Refusal
from edje_qdrant.web.schemas import ErrorBody, Ingested, Picture, PictureList
from edje_qdrant.web.service import Service, not_found
from edje_qdrant.web.settings import UPLOADS
from edje_qdrant.web.uploads import Upload, ingest_uploads, payload_fields

__all__ = ["image_routes"]

# An id names an image's content, so what it stands for does not change.
_CACHE = "private, max-age=3600"
_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": ErrorBody}}


def image_routes(service: Service, responses: dict[int | str, dict[str, Any]]) -> APIRouter:
    """Return the routes of a service."""
    router = APIRouter(prefix="/v1", tags=["pictures"], responses={**responses, **_MISSING})

    @router.get("/images")
    async def images(limit: Annotated[int, Query(ge=1, le=100)] = 24) -> PictureList:
        """Return some images of the collection, in no order that means anything."""
        index = service.retriever.collection.index
        points = await service.read(lambda: next(iter(index.scroll(batch_size=limit)), []))
        shown = [service.picture(point.id, user_payload(point.payload)) for point in points]
        return PictureList(pictures=shown)

    @router.get("/images/{image_id}")
    async def image(image_id: str) -> Picture:
        """Return what is known of an image."""
        payload = await service.read(lambda: service.payload(image_id))
        return service.picture(image_id, payload)

    @router.get(
        "/images/{image_id}/file",
        response_class=Response,
        responses={200: {"content": {"image/*": {}}, "description": "The image as it is."}},
    )
    async def file(image_id: str, request: Request) -> Response:
        """Return the image itself."""
        served = await service.read(lambda: service.folder.read(service.payload(image_id)))
        if served is None:
            raise not_found()
        return _sent(served.data, served.media_type, f'"{image_id}"', request)

    @router.get(
        "/images/{image_id}/thumbnail",
        response_class=Response,
        responses={200: {"content": {"image/webp": {}}, "description": "A small image."}},
    )
    async def thumbnail(
        image_id: str,
        request: Request,
        size: Annotated[Literal["160", "320", "640"], Query(description="Longest side.")] = "320",
    ) -> Response:
        """Return a small version of the image."""
        side = int(size)
        data = await service.read(
            lambda: service.thumbnails.get(image_id, service.payload(image_id), side)
        )
        if data is None:
            raise not_found()
        return _sent(data, "image/webp", f'"{image_id}-{side}"', request)

    @router.post("/ingest", responses={403: {"model": ErrorBody}})
    async def ingest(
        files: Annotated[list[UploadFile], File(description="Pictures.")],
        fields: Annotated[
            str | None, Form(description="A JSON object: further fields of the payload.")
        ] = None,
    ) -> Ingested:
        """Add images to the collection; those that are there already are skipped."""
        settings = service.settings
        if not settings.ingest or settings.pictures is None:
            raise Refusal(403, "IngestOff", "this service takes no images; start it with --ingest")
        if len(files) > settings.max_files:
            message = f"{settings.max_files} images at a time at most; send the rest after these"
            raise Refusal(413, "TooLarge", message)
        chosen = payload_fields(fields)
        uploads = [Upload(file.filename or "a file", await file.read()) for file in files]
        place = settings.pictures.resolve() / UPLOADS
        done = await service.write(
            lambda: ingest_uploads(
                uploads,
                place,
                service.retriever.collection,
                service.retriever.model,
                fields=chosen,
                max_pixels=settings.max_pixels,
            )
        )
        service.measures.ingested(done.added, done.skipped, len(done.failed))
        return done

    return router


def _sent(data: bytes, media_type: str, tag: str, request: Request) -> Response:
    headers = {
        "ETag": tag,
        "Cache-Control": _CACHE,
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=media_type, headers=headers)
