"""Migrations that die at a chosen point of them, and what is there then."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from proof_killing import Points
from proof_world import ingest, model, rankings_of, searched

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.index import VectorIndex
from edje_qdrant.maintenance import verify
from edje_qdrant.migration import (
    change_over,
    cut_over,
    drop_old,
    migrate,
    migration_status,
    rollback,
)

#: The key of each model's contract -> its seed.
OLD, NEW = 0, 1


def killable(
    pipe: int, location: str, operation: str, kill: dict[str, Any] | None = None
) -> dict[str, int]:
    """Do an operation, dying where `kill` says; return how often each point was passed."""
    points = Points(pipe, kill, Path(location) / "images")
    points.install()
    for name in ("set_metadata", "remove", "sign"):
        points.around(VectorIndex, name, f"engine {name}")
    change_over._IN_FLIGHT = 0.0
    OPERATIONS[operation](location)
    return dict(points.passed)


def encode(location: str) -> None:
    with ImageCollection.open(location, "images") as collection:
        migrate(collection, model(NEW), batch_size=3, workers=1, checkpoint_every=3, progress=False)


def switch(location: str) -> None:
    with ImageCollection.open(location, "images") as collection:
        cut_over(collection, model(NEW), batch_size=3, grace=0, progress=False)


def whole(location: str) -> None:
    """Do what is left of a migration."""
    status = status_of(location)
    if status is None and key_of(location) == NEW:
        return
    if status in (None, "encoding", "closing"):
        encode(location)
    if status in (None, "encoding", "closing", "settling"):
        switch(location)
    with ImageCollection.open(location, "images") as collection:
        drop_old(collection)


def back(location: str) -> None:
    """Do what is left of a rollback."""
    if status_of(location) is not None:
        with ImageCollection.open(location, "images") as collection:
            rollback(collection)


OPERATIONS = {"encode": encode, "switch": switch, "whole": whole, "back": back}


def prepared(pipe: int, location: str, steps: list[str]) -> None:
    """Do steps of a migration."""
    for step in steps:
        if step == "switch":
            change_over._IN_FLIGHT = 0.0
        OPERATIONS[step](location)


def filled(pipe: int, location: str, pictures: str) -> None:
    """Make a collection of the old model."""
    if "://" in location:
        ImageCollection.create(location, "images", model(OLD).contract()).close()
        from edje_qdrant.ingest.ingest import ingest_images

        with ImageCollection.open(location, "images") as collection:
            ingest_images(pictures, collection, model(OLD), batch_size=4, progress=False)
        return
    ingest(location, pictures)


def status_of(location: str) -> str | None:
    with ImageCollection.open(location, "images") as collection:
        status = migration_status(collection)
        return None if status is None else status.state


def key_of(location: str) -> int:
    with ImageCollection.open(location, "images") as collection:
        return seed_of(collection)


def seed_of(collection: ImageCollection) -> int:
    """Return which model wrote the collection, as its contract says."""
    keys = {model(seed).contract().model_key: seed for seed in (OLD, NEW)}
    return keys[collection.contract.model_key]


def now(pipe: int, location: str) -> dict[str, Any]:
    """Return what a search finds at this moment, with the model that the collection names."""
    with closing(ImageCollection.open(location, "images")) as collection:
        seed = seed_of(collection)
        status = migration_status(collection)
        return {
            "model": seed,
            "rankings": rankings_of(searched(collection, seed)),
            "findings": [finding.kind for finding in verify(collection).findings],
            "status": None if status is None else status.state,
            "sides": [*collection.origin.sides],
        }
