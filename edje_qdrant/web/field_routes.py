"""Routes about payload fields: names and values to complete filters, checks, texts to try."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query

from edje_qdrant.errors import ConfigError
from edje_qdrant.index.where import filter_of
from edje_qdrant.sources.read import OTHER_PATHS
from edje_qdrant.web.fields import Fields, suggestions
from edje_qdrant.web.schemas import (
    FieldList,
    FieldValues,
    FilterCheck,
    FilterCheckRequest,
    FilterTrouble,
    KnownField,
    KnownValue,
    Suggestions,
)
from edje_qdrant.web.service import Service
from edje_qdrant.web.strict_json import StrictRoute

__all__ = ["field_routes"]

# Fields that are stored with the folders above the served one, which clients must not see.
_OF_FILES = frozenset({"path", OTHER_PATHS, "video", "document"})


def field_routes(service: Service, responses: dict[int | str, dict[str, Any]]) -> APIRouter:
    """Create the routes about a collection's payload fields."""
    router = APIRouter(prefix="/v1", tags=["fields"], responses=responses, route_class=StrictRoute)
    fields = Fields()

    @router.get("/fields")
    async def listed() -> FieldList:
        """Return the payload fields of a sample of the images, most frequent first."""
        collection = service.retriever.collection
        sample = await service.read(lambda: fields.sample(collection))
        return FieldList(
            fields=[
                KnownField(name=each.name, kinds=sorted(each.kinds), images=each.points)
                for each in sample.fields.values()
            ],
            images=sample.points,
            complete=sample.complete,
        )

    @router.get("/fields/values")
    async def values(
        field: Annotated[str, Query(min_length=1, max_length=200, description="Name of a field.")],
    ) -> FieldValues:
        """Return the most frequent values of a payload field; none of fields that name files."""
        if field in _OF_FILES:
            return FieldValues(field=field, values=[], counted=False)
        collection = service.retriever.collection
        found, counted = await service.read(lambda: fields.values(collection, field))
        return FieldValues(
            field=field,
            values=[KnownValue(value=value, images=count) for value, count in found],
            counted=counted,
        )

    @router.post("/filter/check")
    async def check(request: FilterCheckRequest) -> FilterCheck:
        """Say which conditions of a filter cannot be used, or find nothing, and why."""
        collection = service.retriever.collection
        troubles: list[FilterTrouble] = []
        for text in request.where:
            try:
                filter = filter_of([text])
                problems = await service.read(partial(fields.problems, collection, filter))
            except ConfigError as error:
                troubles.append(FilterTrouble(where=text, kind="refused", message=str(error)))
                continue
            troubles += [
                FilterTrouble(where=text, kind=p.kind, message=p.message, nearest=p.nearest)
                for p in problems
            ]
        return FilterCheck(problems=troubles)

    @router.get("/suggestions")
    async def suggested() -> Suggestions:
        """Return texts to search for, from the captions and keywords of a sample of the images."""
        collection = service.retriever.collection
        sample = await service.read(lambda: fields.sample(collection))
        return Suggestions(texts=suggestions(sample))

    return router
