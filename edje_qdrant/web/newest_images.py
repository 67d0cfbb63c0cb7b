"""Pages of a collection's images, newest first."""

from __future__ import annotations

import base64
import json
from typing import Any

from edje_qdrant.collection.collection import user_payload
from edje_qdrant.errors import ConfigError
from edje_qdrant.index import Filter
from edje_qdrant.web.schemas import PictureList
from edje_qdrant.web.service import Service

__all__ = ["newest_images"]

# An image's date is the first of these that it has.
_DATES = ("taken_at", "modified_at")
_NO_ORDER = (
    "In order of id: newest first needs an index of dates, which edje-qdrant ingest makes with "
    "--payload-index taken_at=datetime --payload-index modified_at=datetime"
)


def newest_images(
    service: Service, limit: int, cursor: str | None, filter: Filter | None
) -> PictureList:
    """Read a page of images.

    Args:
        service: The service.
        limit: Images of the page.
        cursor: Where it starts; None for the first page.
        filter: Which images; None for all.

    Raises:
        ConfigError: The cursor or the filter cannot be used.
    """
    index = service.retriever.collection.index
    fields, start = (index.orders(_DATES), None) if cursor is None else _read(cursor)
    page = index.newest(fields, start=start, size=limit, filter=filter)
    return PictureList(
        pictures=[
            service.image_info(point.id, user_payload(point.payload)) for point in page.points
        ],
        order="newest" if fields else "id",
        reason=None if fields else _NO_ORDER,
        cursor=None if page.next is None else _written(fields, page.next),
    )


def _written(fields: tuple[str, ...], position: Any) -> str:
    text = json.dumps([[*fields], position], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read(cursor: str) -> tuple[tuple[str, ...], Any]:
    """Return the fields that order the list, and a position in it.

    Raises:
        ConfigError: It is not a cursor of such a list.
    """
    try:
        data = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        fields, position = json.loads(data)
        # Other fields would let a request sort all points by them.
        if position is not None and [*fields] == [each for each in _DATES if each in fields]:
            return tuple(fields), position
    except (ValueError, TypeError):
        pass
    raise ConfigError("cursor is not one of this list; ask for the first page, without a cursor")
