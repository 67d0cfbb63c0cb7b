"""Routes for search (by text, image, example, cursor) and explain."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, File, Form, UploadFile

from edje_qdrant.errors import ImageReadError
from edje_qdrant.ingest.encode import encode_batch
from edje_qdrant.search.options import TOP_K
from edje_qdrant.web.read_filter import read_filter
from edje_qdrant.web.schemas import (
    Answer,
    Explained,
    ExplainRequest,
    NextRequest,
    RecommendRequest,
    SearchRequest,
    TypedCount,
    TypedTruth,
)
from edje_qdrant.web.service import Service
from edje_qdrant.web.strict_json import StrictRoute
from edje_qdrant.web.uploads import Upload

__all__ = ["search_routes"]


def search_routes(service: Service, responses: dict[int | str, dict[str, Any]]) -> APIRouter:
    """Create the search routes of a service."""
    router = APIRouter(prefix="/v1", tags=["search"], responses=responses, route_class=StrictRoute)

    @router.post("/search")
    async def search(request: SearchRequest) -> Answer:
        """Find the images that fit a text best, in two stages."""
        return await service.search(request)

    @router.post("/search/next")
    async def search_next(request: NextRequest) -> Answer:
        """Return the next page of an answer, without a new search."""
        service.check_top_k(request.top_k)
        retriever = service.retriever
        result = await service.read(lambda: retriever.resume(request.cursor, top_k=request.top_k))
        return service.answer(result)

    @router.post("/search/image")
    async def search_image(
        file: Annotated[UploadFile, File(description="Image to search by.")],
        top_k: Annotated[TypedCount, Form()] = TOP_K,
        filter: Annotated[
            str | None,
            Form(
                description="Filter as in /v1/search, as JSON.",
                json_schema_extra={"contentMediaType": "application/json"},
            ),
        ] = None,
        where: Annotated[
            list[str], Form(max_length=100, description="Conditions as in /v1/search.")
        ] = [],  # noqa: B006 - FastAPI copies it
        group_by: Annotated[str | None, Form(min_length=1, max_length=200)] = None,
        collapse_duplicates: Annotated[TypedTruth, Form()] = False,
    ) -> Answer:
        """Find the images most like an uploaded one, by the first stage alone."""
        service.check_top_k(top_k)
        chosen = service.filter(read_filter(filter), where=where)
        service.require_index()  # before the image is decoded
        upload = Upload(file.filename or "the image", await file.read())
        read = await service.read_upload(upload)
        if read.pixels is None:
            raise ImageReadError(upload.name, str(read.failed))
        pixels, retriever = read.pixels, service.retriever
        result = await service.score(
            lambda: retriever.search_by_image(
                encode_batch(retriever.model, [pixels]),
                top_k=top_k,
                filter=chosen,
                group_by=group_by,
                collapse_duplicates=collapse_duplicates,
            )
        )
        service.metrics.search(result, 0.0)
        return service.answer(result)

    @router.post("/recommend")
    async def recommend(request: RecommendRequest) -> Answer:
        """Find images like some of the collection, and unlike others."""
        top_k, number = service.counts(request)
        if request.text is not None:
            service.check_text(request.text)
        chosen = service.filter(request.filter, request.qdrant_filter, request.where)
        retriever = service.retriever
        result = await service.score(
            lambda: retriever.recommend(
                request.liked,
                request.disliked,
                text=request.text,
                top_k=top_k,
                num_candidates=number,
                filter=chosen,
                strategy=request.strategy,
                on_missing=request.on_missing,
                collapse_duplicates=request.collapse_duplicates,
            )
        )
        service.metrics.search(result, 0.0)
        return service.answer(result)

    @router.post("/explain")
    async def explain(request: ExplainRequest) -> Explained:
        """Explain where in an image each word of a text is seen."""
        return await service.explain(request.image_id, request.text)

    return router
