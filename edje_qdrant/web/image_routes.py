"""Routes for images: list, describe, send, ingest."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Path, Query, Request, Response, UploadFile
from starlette.responses import FileResponse, StreamingResponse

from edje_qdrant.web.errors import RequestError
from edje_qdrant.web.newest_images import newest_images
from edje_qdrant.web.read_filter import read_filter
from edje_qdrant.web.schemas import (
    ErrorBody,
    Ingested,
    Picture,
    PictureList,
    TypedLimit,
    ZipRequest,
)
from edje_qdrant.web.service import Service, not_found
from edje_qdrant.web.settings import UPLOADS
from edje_qdrant.web.uploads import Upload, ingest_uploads, payload_fields
from edje_qdrant.web.zip_files import ZipEntry, bytes_of, zip_entries, zipped

__all__ = ["image_routes"]

# An id is derived from the image's content, so a cached copy stays valid.
_CACHE = "private, max-age=3600"

# A player loads the film from its own address, which needs the origin; no script runs.
_FILM_POLICY = "default-src 'none'; media-src 'self'; sandbox allow-same-origin"
# Not every browser's viewer of documents works in a sandbox.
_DOCUMENT_POLICY = "default-src 'none'; object-src 'self'; style-src 'unsafe-inline'"

# A malformed id is answered as an unknown one is, so that every path without an image is a 404.
_Id = Annotated[str, Path(json_schema_extra={"format": "uuid"})]
_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": ErrorBody}}


def image_routes(service: Service, responses: dict[int | str, dict[str, Any]]) -> APIRouter:
    """Create the image routes of a service."""
    router = APIRouter(prefix="/v1", tags=["pictures"], responses={**responses, **_MISSING})

    @router.get("/images")
    async def images(
        limit: Annotated[TypedLimit, Query()] = 24,
        cursor: Annotated[
            str | None,
            Query(pattern="^[A-Za-z0-9_-]+$", description="The `cursor` of the page before."),
        ] = None,
        filter: Annotated[
            str | None,
            Query(
                description="Filter as in /v1/search, as JSON.",
                json_schema_extra={"contentMediaType": "application/json"},
            ),
        ] = None,
        where: Annotated[
            list[str], Query(max_length=100, description="Conditions as in /v1/search.")
        ] = [],  # noqa: B006 - FastAPI copies it
    ) -> PictureList:
        """Return a page of the collection's images, newest first where the index has dates."""
        chosen = service.filter(read_filter(filter), where=where)
        return await service.read(lambda: newest_images(service, limit, cursor, chosen))

    @router.post(
        "/images/zip",
        response_class=Response,
        responses={200: {"content": {"application/zip": {}}, "description": "The image files."}},
    )
    async def zip_file(request: ZipRequest) -> Response:
        """Return the unchanged files of images as one zip file."""
        settings, folder = service.settings, service.folder
        ids = [*dict.fromkeys(request.image_ids)]
        if len(ids) > settings.max_zip_files:
            message = (
                f"a zip file may hold {settings.max_zip_files} images; ask for the rest in "
                "further requests"
            )
            raise RequestError(413, "TooLarge", message)
        index = service.retriever.collection.index

        def read() -> tuple[list[ZipEntry], int | None]:
            entries = zip_entries(folder, ids, index.retrieve(ids, tokens=False))
            return entries, bytes_of(folder, entries)

        entries, size = await service.read(read)
        if size is None:
            raise not_found()
        if size > settings.max_zip_bytes:
            message = (
                f"the files have {size >> 20} MB together, and a zip file may hold "
                f"{settings.max_zip_bytes >> 20} MB; ask for fewer at a time"
            )
            raise RequestError(413, "TooLarge", message)
        headers = {"Content-Disposition": 'attachment; filename="pictures.zip"'}
        return StreamingResponse(
            zipped(folder, entries), media_type="application/zip", headers=headers
        )

    @router.get("/images/{image_id}")
    async def image(image_id: _Id) -> Picture:
        """Describe an image: payload and addresses of its files."""
        payload = await service.read(lambda: service.payload(image_id))
        return service.image_info(image_id, payload)

    @router.get(
        "/images/{image_id}/file",
        response_class=Response,
        responses={200: {"content": {"image/*": {}}, "description": "The unchanged image file."}},
    )
    async def file(image_id: _Id, request: Request) -> Response:
        """Return the image file; of a frame of a film or a page of a document, a PNG."""
        payload = await service.read(lambda: service.payload(image_id))
        run = service.read if service.folder.fragment(payload) is None else service.decode
        served = await run(lambda: service.folder.read(payload))
        if served is None:
            raise not_found()
        return _sent(served.data, served.media_type, f'"{image_id}"', request)

    @router.get(
        "/images/{image_id}/source",
        response_class=Response,
        responses={
            200: {"content": {"video/*": {}, "application/pdf": {}}, "description": "The file."},
            206: {"description": "A part of the file, for a request with a range."},
            416: {"description": "The file has no such range."},
        },
    )
    async def source(image_id: _Id) -> Response:
        """Return the film of a frame, or the document of a page; players ask for ranges of it."""
        payload = await service.read(lambda: service.payload(image_id))
        whole = await service.read(lambda: service.folder.whole(payload))
        if whole is None:
            raise not_found()
        return FileResponse(
            whole.path,
            media_type=whole.media_type,
            filename=os.path.basename(whole.path),
            content_disposition_type="inline" if whole.shown else "attachment",
            headers=_headers_of(whole.media_type),
        )

    @router.get(
        "/images/{image_id}/thumbnail",
        response_class=Response,
        responses={200: {"content": {"image/webp": {}}, "description": "A small image."}},
    )
    async def thumbnail(
        image_id: _Id,
        request: Request,
        size: Annotated[Literal["160", "320", "640"], Query(description="Longest side.")] = "320",
    ) -> Response:
        """Return a thumbnail of the image."""
        side = int(size)
        payload = await service.read(lambda: service.payload(image_id))
        data = await service.decode(lambda: service.thumbnails.get(image_id, payload, side))
        if data is None:
            raise not_found()
        return _sent(data, "image/webp", f'"{image_id}-{side}"', request)

    @router.post("/ingest", responses={403: {"model": ErrorBody}})
    async def ingest(
        files: Annotated[list[UploadFile], File(min_length=1, description="Image files.")],
        fields: Annotated[
            str | None,
            Form(
                description="A JSON object with further payload fields.",
                json_schema_extra={"contentMediaType": "application/json"},
            ),
        ] = None,
    ) -> Ingested:
        """Add images to the collection; of images that it already holds, the fields are updated."""
        settings = service.settings
        if not settings.ingest or settings.images is None:
            raise RequestError(
                403, "IngestOff", "this service accepts no images; start it with --ingest"
            )
        if len(files) > settings.max_files:
            message = (
                f"a request may hold {settings.max_files} images; send the rest in further requests"
            )
            raise RequestError(413, "TooLarge", message)
        chosen = payload_fields(fields)
        service.require_index()  # before images are decoded
        uploads = [Upload(file.filename or "a file", await file.read()) for file in files]
        place = settings.images.resolve() / UPLOADS
        read = await asyncio.gather(*(service.read_upload(upload) for upload in uploads))
        done = await service.write(
            lambda: ingest_uploads(
                read, place, service.retriever.collection, service.retriever.model, fields=chosen
            )
        )
        service.metrics.ingested(done.added, done.updated, done.skipped, len(done.failed))
        return done

    return router


def _headers_of(media_type: str) -> dict[str, str]:
    """Return headers with which a browser displays a film or a document, and runs nothing."""
    policy = _DOCUMENT_POLICY if media_type == "application/pdf" else _FILM_POLICY
    return {
        "Cache-Control": "private, no-cache",  # the file may change
        "Content-Security-Policy": policy,
        "Cross-Origin-Resource-Policy": "same-origin",
    }


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
