"""Update of the fields of images that are stored already, from what the source says now."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.ingest.decode import KnownImage
from edje_qdrant.sources.read import OTHER_PATHS

__all__ = ["FieldUpdater", "update_fields"]

# Set by the ingest itself, whatever the source says.
_OWN = frozenset({"path", "width", "height", OTHER_PATHS})


class FieldUpdater:
    """Set the fields of stored images that differ from the source; nothing is encoded.

    Fields that the source does not name stay. A field that the source has as null is removed. If
    the source has an image twice, its first occurrence counts, as it does for new images.

    Args:
        collection: The collection to update.

    Attributes:
        updated: Images whose fields were changed.
    """

    def __init__(self, collection: ImageCollection) -> None:
        self._collection = collection
        self._seen: set[bytes] = set()
        self.updated = 0

    def __call__(self, batch: Sequence[KnownImage], existing: AbstractSet[str]) -> set[str]:
        """Update the images of a batch that are stored; return the ids of those that changed.

        Args:
            batch: Images of the source.
            existing: Ids of those that are stored.
        """
        wanted: dict[str, Mapping[str, Any]] = {}
        for image in batch:
            if not image.listed.fields.keys() - _OWN:
                continue
            key = uuid.UUID(image.image_id).bytes
            if key not in self._seen:
                self._seen.add(key)
                if image.image_id in existing:
                    wanted[image.image_id] = image.listed.fields
        changed = update_fields(self._collection, wanted)
        self.updated += len(changed)
        return changed


def update_fields(collection: ImageCollection, wanted: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Set fields of stored images where they differ; return the ids of those that changed.

    Args:
        collection: The collection to update.
        wanted: Id -> fields; ids that are not stored are ignored.
    """
    stored = collection.index.retrieve([*wanted], tokens=False) if wanted else {}
    changes = {
        image_id: changed
        for image_id, payload in stored.items()
        if (changed := _changed(payload, wanted[image_id]))
    }
    if changes:
        # The engines have no null at the top of a payload; the key is removed instead.
        given = {
            image_id: {name: value for name, value in changed.items() if value is not None}
            for image_id, changed in changes.items()
        }
        collection.update_payload({image_id: own for image_id, own in given.items() if own})
        for image_id, changed in changes.items():
            gone = [name for name, value in changed.items() if value is None]
            if gone:
                collection.index.remove_payload_keys([image_id], gone)
    return {*changes}


def _changed(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `wanted` that `stored` has not, or has with another value."""
    return {
        name: value
        for name, value in wanted.items()
        if name not in _OWN and not _same(stored.get(name), value)
    }


def _same(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal; 1 equals 1.0, as engines may change one so."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
