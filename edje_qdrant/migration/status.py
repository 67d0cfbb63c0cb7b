"""How far a collection's migration is."""

from __future__ import annotations

from dataclasses import dataclass

from edje_qdrant.checks import check_kind
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.moved import Moved, read_moved
from edje_qdrant.errors import CollectionNotFoundError
from edje_qdrant.migration.reports import MigrationStatus

__all__ = ["OldSide", "migration_status", "old_side"]


@dataclass(frozen=True, slots=True)
class OldSide:
    """Name the side that a cut-over has replaced, and that is still there.

    Attributes:
        name: Name of the side.
        moved: What its metadata says.
    """

    name: str
    moved: Moved

    @property
    def other(self) -> str | None:
        """Return the name of its model."""
        model = self.moved.before.get("contract", {}).get("model")
        return None if model is None else str(model)


def old_side(collection: ImageCollection) -> OldSide | None:
    """Return the side that the open one has replaced; None if there is none, or it was dropped.

    Raises:
        StoreError: Its metadata cannot be read.
        EngineUnavailableError: The server cannot be reached.
    """
    sides = collection.origin.sides
    if len(sides) < 2:
        return None
    name = sides[-2]
    moved = read_moved(collection.side_metadata(name), f"{name!r} at {collection.location}")
    return None if moved.state == "dropped" else OldSide(name, moved)


def migration_status(collection: ImageCollection) -> MigrationStatus | None:
    """Return how far a collection's migration is; None if none is under way.

    Args:
        collection: An open collection.

    Raises:
        CollectionLockedError: Another process has the other side's folder open.
        StoreError: The other side cannot be read.
        EngineUnavailableError: The server cannot be reached.
    """
    check_kind("collection", collection, ImageCollection, "an ImageCollection")
    model = collection.contract.model
    if (old := old_side(collection)) is not None:
        index = collection.open_side_index(old.name)
        count = index.count()
        index.close()
        assert old.moved.state != "dropped"
        return MigrationStatus(
            old.moved.state, model, old.other, collection.count(), count, old.name
        )
    under_way = collection.migration_now() if not collection.read_only else collection.migration
    if under_way is None:
        return None
    try:
        index = collection.open_side_index(under_way.to)
    except CollectionNotFoundError:  # killed before it was created
        count = 0
    else:
        count = index.count()
        index.close()
    return MigrationStatus(
        "rolling back" if under_way.state == "removing" else under_way.state,
        model, under_way.contract.model, collection.count(), count, under_way.to,
    )  # fmt: skip
