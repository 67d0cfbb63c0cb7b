"""Which images of a source are stored with their path and unchanged, so that none is read again."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import EngineUnavailableError, StoreError
from edje_qdrant.ingest.decode import StoredStamp
from edje_qdrant.types import Point

__all__ = ["KnownPaths"]

_log = logging.getLogger(__name__)

# What an image can be recognised by.
_STAMP = ("etag", "file_size", "modified_at")


class KnownPaths:
    """Find stored images by their paths.

    The engine finds them by its payload index of `path`, which is created if it is missing. An
    engine without payload indexes (faiss, Qdrant's local mode) would read every payload at each
    lookup; there, paths and stamps are read once and held in memory, about 1 KB an image.

    Args:
        collection: Holds the images. If it is empty now, nothing is looked up.
    """

    def __init__(self, collection: ImageCollection) -> None:
        self._collection = collection
        self._read: Mapping[str, Sequence[StoredStamp]] | None = None
        self._usable = collection.count() > 0 and self._prepare()

    def __call__(self, paths: Sequence[str]) -> Mapping[str, Sequence[StoredStamp]]:
        """Return the stored images that have some of the paths."""
        if not self._usable or not paths:
            return {}
        if self._read is not None:
            return self._read
        return _by_path(self._points({"path": [*dict.fromkeys(paths)]}))

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
            self._read = _by_path(self._points(None))
        return True

    def _points(self, filter: Mapping[str, Any] | None) -> Iterator[Point]:
        for page in self._collection.index.scroll(filter=filter):
            others = {point.id for point in self._collection.of_other_programs(page)}
            yield from (point for point in page if point.id not in others)


def _by_path(points: Iterable[Point]) -> Mapping[str, Sequence[StoredStamp]]:
    found = defaultdict(list)
    for point in points:
        path, payload = point.payload.get("path"), point.payload
        if isinstance(path, str):
            fields = {name: payload[name] for name in _STAMP if name in payload}
            found[path].append(StoredStamp(point.id, fields))
    return dict(found)
