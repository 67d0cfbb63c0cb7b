"""The other paths of stored images: where a source has a file with the same content.

Images are named by their content, so of several files with the same content one image is stored,
with the `path` of one of them. The payload keeps the other paths, so that the image is not deleted
while one of the files is still there.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import part_of
from edje_qdrant.ingest.decode import KnownImage
from edje_qdrant.sources.parts import file_of, part_fields
from edje_qdrant.sources.read import OTHER_PATHS, other_paths
from edje_qdrant.sources.remote import about
from edje_qdrant.sources.uris import is_in_memory, is_uri_of_image, split_part
from edje_qdrant.types import Payload

__all__ = ["Copies", "Place", "follow_copies", "next_place", "set_places"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stored image is: its `path`, None to leave it as it is, and the other paths."""

    path: str | None
    others: Sequence[str]


class Copies:
    """Keep the paths at which a source has the content of images that are stored.

    Args:
        collection: Holds the images.
        moved_in: As for `follow_copies`.

    Attributes:
        seen: With `moved_in`, the ids and paths of all copies of the source.
    """

    def __init__(
        self, collection: ImageCollection, *, moved_in: tuple[str, ...] | None = None
    ) -> None:
        self._collection, self._moved_in = collection, moved_in
        self.seen: set[tuple[str, str]] = set()

    def keep_known(self, images: Iterable[KnownImage], existing: AbstractSet[str]) -> None:
        """Keep the paths of images of the source that are stored with another path.

        Args:
            images: Images of the source.
            existing: Ids of those that are stored.
        """
        self.keep(
            (image.image_id, image.listed.path)
            for image in images
            if image.image_id in existing and not image.at_path
        )

    def keep(self, copies: Iterable[tuple[str, str]]) -> None:
        """Keep the paths of copies, given as id and path; ids that are not stored are ignored."""
        copies = [*copies]
        if self._moved_in is not None:
            self.seen.update(copies)
        follow_copies(self._collection, copies, moved_in=self._moved_in)


def follow_copies(
    collection: ImageCollection,
    copies: Iterable[tuple[str, str]],
    *,
    moved_in: tuple[str, ...] | None = None,
) -> set[str]:
    """Store the paths of copies with their images; return the ids of images that were moved.

    Images whose stored path is gone keep it, unless `moved_in` is given: then they get the path of
    a copy. The old path becomes one of the others if it may be on a disk that is away.

    Args:
        collection: The collection that holds the images.
        copies: Id, and path where a file with the image's content is now.
        moved_in: Beginnings of paths that are not on a disk that is away.
    """
    paths: dict[str, list[str]] = defaultdict(list)
    for image_id, path in copies:
        paths[image_id].append(path)
    stored = collection.index.retrieve([*paths], tokens=False) if paths else {}
    places: dict[str, Place] = {}
    for image_id, payload in stored.items():
        stored_path, others = payload.get("path"), other_paths(payload)
        old = stored_path if isinstance(stored_path, str) else ""
        new = [path for path in paths[image_id] if path != old]
        if not new:
            continue
        if moved_in is not None and is_gone(old):
            lost = not old or old.startswith(moved_in) or is_surely_gone(old)
            places[image_id] = _place(new[0], [*others, *new[1:], *([] if lost else [old])])
        elif old:
            place = _place(old, [*others, *new])
            if [*place.others] != others:
                places[image_id] = Place(None, place.others)
    set_places(collection, places)
    return {image_id for image_id, place in places.items() if place.path is not None}


def next_place(others: Sequence[str]) -> Place | None:
    """Return where an image is whose path is gone; None if its other paths are surely gone, too.

    Args:
        others: Its other paths; one whose file is there is taken first.
    """
    left = [path for path in others if not is_surely_gone(path)]
    if not left:
        return None
    return _place(next((path for path in left if not is_gone(path)), left[0]), left)


def set_places(collection: ImageCollection, places: Mapping[str, Place]) -> None:
    """Set the paths of stored images."""
    fields = {
        image_id: {
            **({} if place.path is None else place_fields(place.path)),
            **({OTHER_PATHS: [*place.others]} if place.others else {}),
        }
        for image_id, place in places.items()
    }
    collection.update_payload({image_id: own for image_id, own in fields.items() if own})
    alone = [image_id for image_id, place in places.items() if not place.others]
    if alone:
        collection.index.remove_payload_keys(alone, [OTHER_PATHS])


def place_fields(path: str) -> Payload:
    """Return the fields that say where an image is."""
    part = part_of(path)
    return {"path": path} if part is None else {**part_fields(part), "path": path}


def is_gone(path: str) -> bool:
    """Return whether there is nothing any more where an image was stored from."""
    if is_in_memory(path):
        return True
    if not is_uri_of_image(path):
        return not os.path.exists(_file(path))
    try:
        about(path)
    except ImageReadError:  # or its server is away, and then the newer place is the better one
        return True
    return False


def is_surely_gone(path: str) -> bool:
    """Return whether an image is gone, and not only on a disk or a server that is away.

    A disk that is away leaves a folder that is missing or empty.
    """
    if is_in_memory(path):
        return True
    if is_uri_of_image(path) or os.path.exists(_file(path)):
        return False
    with suppress(OSError), os.scandir(os.path.dirname(_file(path))) as entries:
        return any(True for _ in entries)
    return False


def _file(path: str) -> str:
    """Return the file that a local path names, or that contains what it names."""
    part = split_part(path)
    return file_of(path) if part is None else part[0]


def _place(path: str, others: Iterable[str]) -> Place:
    own = dict.fromkeys(each for each in others if each != path and not is_in_memory(each))
    return Place(path, [*own])
