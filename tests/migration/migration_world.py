"""Collections to migrate: images in files, two small models, and every kind of place."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from served import Server

from edje_qdrant.collection.collection import ImageCollection, user_payload
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.model import EDJEModel
from edje_qdrant.search.retriever import TwoStageRetriever

TEXTS = ("a red square", "two boats", "x")


@dataclass
class World:
    """Where a collection is, and the images that it is made from.

    Attributes:
        location: Folder or client.
        name: Name of the collection.
        pictures: Folder of the images.
        more: How the collection is created.
        server: The server, if it is on one.
    """

    location: Any
    name: str
    pictures: Path
    more: dict[str, Any] = field(default_factory=dict)
    server: Server | None = None

    def create(self, model: EDJEModel, name: str | None = None, **more: Any) -> ImageCollection:
        given = {**self.more, **more}
        return ImageCollection.create(self.location, name or self.name, model.contract(), **given)

    def filled(self, model: EDJEModel, **more: Any) -> ImageCollection:
        """Return a collection of all images, open."""
        collection = self.create(model, **more)
        assert self.ingest(collection, model) == len([*self.pictures.iterdir()])
        return collection

    def ingest(self, collection: ImageCollection, model: EDJEModel) -> int:
        return ingest_images(
            self.pictures, collection, model, batch_size=4, workers=1, progress=False
        ).added

    def open(self, name: str | None = None) -> ImageCollection:
        return ImageCollection.open(self.location, name or self.name)


def draw(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Draw images of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = [folder / f"{seed}-{number:02}.png" for number in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(path)
    return paths


def rankings(collection: ImageCollection, model: EDJEModel) -> list[list[tuple[str, float]]]:
    """Return what searches find, with scores to three digits."""
    retriever = TwoStageRetriever(collection, model, token_cache=None, first_stage="engine")
    return [
        [(hit.image_id, round(float(hit.score or 0), 3)) for hit in result]
        for result in retriever.search_batch(TEXTS, top_k=100)
    ]


def held(collection: ImageCollection) -> dict[str, dict[str, Any]]:
    """Return id -> fields of all images."""
    return {
        point.id: user_payload(point.payload)
        for page in collection.index.scroll()
        for point in page
    }
