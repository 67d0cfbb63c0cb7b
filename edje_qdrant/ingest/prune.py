"""Deletion of images that are gone from a source."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError, StoreError
from edje_qdrant.images import part_of
from edje_qdrant.index import Filter
from edje_qdrant.ingest.copies import Place, next_place, set_places
from edje_qdrant.sources.parts import file_of
from edje_qdrant.sources.protocol import FailedLine, ImageSource
from edje_qdrant.sources.read import other_paths
from edje_qdrant.sources.uris import is_uri_of_image
from edje_qdrant.threads import batches
from edje_qdrant.types import FailedImage, Point

__all__ = ["Agree", "Pruned", "count_old_versions", "points_at", "prune_collection"]

#: Called with the number of images to delete and the paths of three; returns whether to do it.
Agree: TypeAlias = Callable[[int, list[str]], bool]

_EXAMPLES = 3
# Images deleted in one request.
_BATCH = 256

# Paths looked up by a filter; with more of them, reading all points takes less time.
_LOOKED_UP = 1000


@dataclass(frozen=True, slots=True)
class Pruned:
    """Report what was done about images that are gone from a source.

    Attributes:
        deleted: Images deleted.
        kept: Images that were kept, as another place has a copy, and whose `path` is that of the
            copy now.
    """

    deleted: int = 0
    kept: int = 0


def points_at(
    collection: ImageCollection, paths: AbstractSet[str], field: str = "path"
) -> list[Point]:
    """Return the images that are stored with one of the paths, but those of other programs.

    Args:
        collection: The collection that holds the images.
        paths: Their paths.
        field: The payload's field that has them: `video` for frames, `document` for pages.
    """
    if not paths:
        return []
    if len(paths) <= _LOOKED_UP:
        with suppress(ConfigError, StoreError):  # a strict server wants an index, or fewer values
            return _points_at(collection, {field: sorted(paths)}, paths, field)
    return _points_at(collection, None, paths, field)


def _points_at(
    collection: ImageCollection, filter: Filter | None, paths: AbstractSet[str], field: str
) -> list[Point]:
    found: list[Point] = []
    for page in collection.index.scroll(filter=filter):
        others = {point.id for point in collection.of_other_programs(page)}
        found += (
            point for point in page if point.id not in others and point.payload.get(field) in paths
        )
    return found


def count_old_versions(
    collection: ImageCollection, paths: AbstractSet[str], seen: AbstractSet[bytes]
) -> int:
    """Return how many stored images have the path of another image that was added since.

    Args:
        collection: The collection that holds the images.
        paths: Paths of the images that were added; those that are neither absolute nor addresses
            are ignored, as they may be any names.
        seen: The 16 bytes of the id of every image in the source.
    """
    named = {path for path in paths if os.path.isabs(path) or is_uri_of_image(path)}
    points = points_at(collection, named)
    return sum(uuid.UUID(point.id).bytes not in seen for point in points)


def prune_collection(
    collection: ImageCollection,
    source: ImageSource,
    seen: AbstractSet[bytes],
    copies: AbstractSet[tuple[str, str]],
    failed: Sequence[FailedImage],
    agree: Agree | None = None,
) -> Pruned:
    """Delete images that are gone from a source, and forget their other paths that are gone.

    An image of which an ingest found a copy outside the source's scope is kept, and gets the path
    of the copy, unless the copy is surely gone, too. Points that other programs wrote are kept.

    Args:
        collection: The collection to delete from.
        source: Images whose path lies outside its scope are kept; if it has none, all images that
            it does not name are deleted.
        seen: The 16 bytes of the id of every image in the source.
        copies: Id and path of the images that the source has at other paths than the stored one.
        failed: What could not be read; images with such a path, or below it, are kept.
        agree: Called before images are deleted; if it returns False, nothing is done.

    Raises:
        ConfigError: Lines of the manifest could not be read, or a list names no image that can be
            read; nothing was deleted.
    """
    unread = [failure for failure in failed if isinstance(failure, FailedLine)]
    if unread:
        raise ConfigError(
            f"nothing was pruned: {len(unread)} lines of {source.name} cannot be read, line "
            f"{unread[0].path.rpartition(':')[2]} first, and the images they name would be "
            "deleted; fix them and run this again"
        )
    if source.scope is None and not seen:
        raise ConfigError(
            "nothing was pruned: the source names no image that can be read, so all images "
            "would be deleted; to do that, remove the collection"
        )
    scope = ("",) if source.scope is None else source.scope
    spared = {failure.path for failure in failed}
    spared_below = tuple(begin for path in spared for begin in (os.path.join(path, ""), f"{path}#"))

    def is_left(image_id: str, path: str) -> bool:
        """Return whether a path is none that the source should have, but has not any more."""
        return (
            (image_id, path) in copies
            or not path.startswith(scope)
            or path in spared
            or file_of(path) in spared
            or path.startswith(spared_below)
            or _of_other_kind(path, source)
        )

    gone: list[str] = []
    some: list[str] = []
    places: dict[str, Place] = {}
    for page in collection.index.scroll():
        not_ours = {point.id for point in collection.of_other_programs(page)}
        for point in page:
            if point.id in not_ours:
                continue
            path, others = str(point.payload.get("path", "")), other_paths(point.payload)
            left = [each for each in others if is_left(point.id, each)]
            if uuid.UUID(point.id).bytes in seen or is_left(point.id, path):
                if left != others:
                    places[point.id] = Place(None, left)
            elif place := next_place(left):
                places[point.id] = place
            else:
                gone.append(point.id)
                if len(some) < _EXAMPLES:
                    some.append(path)
    if gone and agree is not None and not agree(len(gone), some):
        return Pruned()
    for ids in batches(places, _BATCH):
        set_places(collection, {image_id: places[image_id] for image_id in ids})
    for ids in batches(gone, _BATCH):
        collection.delete(ids)
    return Pruned(len(gone), sum(place.path is not None for place in places.values()))


def _of_other_kind(path: str, source: ImageSource) -> bool:
    """Return whether a path is a frame or a page of a file that the source does not look into."""
    part = part_of(path)
    return part is not None and part.kind not in source.kinds and os.path.exists(part.path)
