"""Update of the paths of moved images, and deletion of images that are gone from a source."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import TypeAlias

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError, ImageReadError, StoreError
from edje_qdrant.images import part_of
from edje_qdrant.index import Filter
from edje_qdrant.sources.parts import file_of, part_fields
from edje_qdrant.sources.protocol import FailedLine, ImageSource
from edje_qdrant.sources.remote import about
from edje_qdrant.sources.uris import is_in_memory, is_uri_of_image, split_part
from edje_qdrant.threads import batches
from edje_qdrant.types import FailedImage, Payload, Point

__all__ = [
    "Agree", "count_old_versions", "follow_moved", "place_fields", "points_at", "prune_collection",
]  # fmt: skip

#: Called with the number of images to delete and the paths of three; returns whether to do it.
Agree: TypeAlias = Callable[[int, list[str]], bool]

_EXAMPLES = 3
# Images deleted in one request.
_BATCH = 256

# Paths looked up by a filter; with more of them, reading all points takes less time.
_LOOKED_UP = 1000


def follow_moved(collection: ImageCollection, paths: Mapping[str, str]) -> set[str]:
    """Update the stored path of images whose file was moved; return their ids.

    Args:
        collection: The collection that holds the images.
        paths: Id -> absolute path where the file is now.
    """
    stored = collection.index.retrieve([*paths], tokens=False)
    moved = {
        image_id: place_fields(paths[image_id])
        for image_id, payload in stored.items()
        if payload.get("path") != paths[image_id] and _is_gone(str(payload.get("path", "")))
    }
    if moved:
        collection.update_payload(moved)
    return {*moved}


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


def _is_gone(path: str) -> bool:
    """Return whether there is nothing any more where an image was stored from."""
    if is_in_memory(path):
        return True
    if not is_uri_of_image(path):
        part = split_part(path)
        return not os.path.exists(file_of(path) if part is None else part[0])
    try:
        about(path)
    except ImageReadError:  # or its server is away, and then the newer place is the better one
        return True
    return False


def place_fields(path: str) -> Payload:
    """Return the fields that say where an image is."""
    part = part_of(path)
    return {"path": path} if part is None else {**part_fields(part), "path": path}


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
    failed: Sequence[FailedImage],
    agree: Agree | None = None,
) -> int:
    """Delete images that are gone from a source; return how many.

    Points that other programs wrote are kept.

    Args:
        collection: The collection to delete from.
        source: Images whose path lies outside its scope are kept; if it has none, all images that
            it does not name are deleted.
        seen: The 16 bytes of the id of every image in the source.
        failed: What could not be read; images with such a path, or below it, are kept.
        agree: Called before images are deleted; if it returns False, none are.

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
    gone: list[str] = []
    some: list[str] = []
    for page in collection.index.scroll():
        others = {point.id for point in collection.of_other_programs(page)}
        for point in page:
            path = str(point.payload.get("path", ""))
            if (
                point.id not in others
                and uuid.UUID(point.id).bytes not in seen
                and path.startswith(scope)
                and path not in spared
                and file_of(path) not in spared
                and not path.startswith(spared_below)
                and not _of_other_kind(path, source)
            ):
                gone.append(point.id)
                if len(some) < _EXAMPLES:
                    some.append(path)
    if not gone or (agree is not None and not agree(len(gone), some)):
        return 0
    for batch in batches(gone, _BATCH):
        collection.delete(batch)
    return len(gone)


def _of_other_kind(path: str, source: ImageSource) -> bool:
    """Return whether a path is a frame or a page of a file that the source does not look into."""
    part = part_of(path)
    return part is not None and part.kind not in source.kinds and os.path.exists(part.path)
