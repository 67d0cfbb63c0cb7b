"""A collection of images that several plugs search."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gallery_checks import Gallery

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.model import EDJEModel
from edje_qdrant.search.retriever import TwoStageRetriever

# Before haystack is imported: it reports its use over the network where nobody says no.
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

WriteImages = Callable[..., list[Path]]


@pytest.fixture
def gallery(tmp_path: Path, write_images: WriteImages, tiny_model: EDJEModel) -> Iterator[Gallery]:
    paths = write_images(tmp_path / "pictures", 12)
    with ImageCollection.create(tmp_path / "index", "images", tiny_model.contract()) as made:
        ingest_images(tmp_path / "pictures", made, tiny_model, progress=False, batch_size=12)
    yield Gallery(tmp_path / "index", paths, tiny_model)
    # Plugs are in cycles, and close their collection when they are collected: before the folder
    # is deleted.
    gc.collect()


@pytest.fixture
def retriever(gallery: Gallery) -> Iterator[TwoStageRetriever]:
    with gallery.open() as opened:
        yield opened
