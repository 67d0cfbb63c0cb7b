"""Which images of a source are stored with their path and unchanged, so that none is read again."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import EngineUnavailableError, StoreError
from edje_qdrant.sources.protocol import ListedImage
from edje_qdrant.types import Point

__all__ = ["KnownPaths"]

_log = logging.getLogger(__name__)

# What an image can be recognised by.
_STAMP = ("etag", "file_size", "modified_at")


class KnownPaths:
    """Find stored images by path and stamp.

    The engine finds them by its payload index of `path`, which is created if it is missing. An
    engine without payload indexes (faiss, Qdrant's local mode) would read every payload at each
    lookup; there, paths and stamps are read once and held in memory, about 400 bytes an image.

    Args:
        collection: Holds the images. If it is empty now, nothing is looked up.
    """

    def __init__(self, collection: ImageCollection) -> None:
        self._collection = collection
        self._read: dict[str, list[tuple[str, tuple[Any, ...]]]] | None = None
        self._usable = collection.count() > 0 and self._prepare()

    def __call__(self, items: Sequence[ListedImage]) -> dict[str, str]:
        """Return path -> id of those of the images that are stored with this path and stamp."""
        stamps = {item.path: item.stamp for item in items if item.stamp}
        if not self._usable or not stamps:
            return {}
        if self._read is not None:
            return {
                path: image_id
                for path, stamp in stamps.items()
                for image_id, values in self._read.get(path, ())
                if _same(dict(zip(_STAMP, values, strict=True)), stamp)
            }
        return {
            str(point.payload["path"]): point.id
            for point in self._points({"path": [*stamps]})
            if _same(point.payload, stamps[point.payload["path"]])
        }

    def _prepare(self) -> bool:
        """Index the paths, or read them; return whether they can be looked up."""
        try:
            self._collection.create_payload_indexes({"path": "keyword"})
        except EngineUnavailableError:
            raise
        except StoreError as error:  # such as a server that allows no more indexes
            _log.warning(
                "no payload index of `path` can be created, so that all images of the source are "
                "read again: %s", error,
            )  # fmt: skip
            return False
        if "path" not in self._collection.payload_indexes():
            read = defaultdict(list)
            for point in self._points(None):
                path = point.payload.get("path")
                if isinstance(path, str):
                    stamp = tuple(point.payload.get(name) for name in _STAMP)
                    read[path].append((point.id, stamp))
            self._read = dict(read)
        return True

    def _points(self, filter: Mapping[str, Any] | None) -> Iterator[Point]:
        for page in self._collection.index.scroll(filter=filter):
            others = {point.id for point in self._collection.of_other_programs(page)}
            yield from (point for point in page if point.id not in others)


def _same(stored: Mapping[str, Any], stamp: Mapping[str, Any]) -> bool:
    return all(stored.get(name) == value for name, value in stamp.items())
