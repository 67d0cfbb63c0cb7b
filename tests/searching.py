"""A collection with fields to filter and group by, on each engine, for tests of searches."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.model import EDJEModel
from edje_qdrant.search.results import SearchResult
from edje_qdrant.types import ImageEncoding

COUNT = 40
TEXTS = ["a red square", "two dogs on a boat", "Kites over the lake!", "b"]


def numbered_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def payload_of(number: int) -> dict[str, Any]:
    """Ten videos of four frames but for two: one of many frames, and images of none."""
    payload: dict[str, Any] = {
        "path": f"{number}.png",
        "album": ["2023", "2024"][number % 2],
        "number": number,
        "camera": {"maker": ["a", "b", "c"][number % 3]},
    }
    if number % 10 != 9:
        payload["video"] = "long" if number < 20 else f"v{number % 5}"
    return payload


def random_images(count: int = COUNT) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(count)
    ]


@cache
def encoding_of(model: EDJEModel) -> ImageEncoding:
    """Encode the images; the same for all tests of a process."""
    encoding = model.encode_images(random_images())
    encoding.embeddings.flags.writeable = encoding.tokens.flags.writeable = False
    return encoding


def make_collection(location: Any, model: EDJEModel, **options: Any) -> ImageCollection:
    if isinstance(location, tuple):
        location, options["engine"] = location
    collection = ImageCollection.create(location, "images", model.contract(), **options)
    ids = [numbered_id(number) for number in range(COUNT)]
    collection.add(ids, encoding_of(model), [payload_of(number) for number in range(COUNT)])
    collection.flush()
    return collection


def numbers(result: SearchResult) -> list[int]:
    return [hit.payload["number"] for hit in result]


def full_scores(model: EDJEModel, text: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return every image's cosine and logit."""
    encoding = encoding_of(model)
    return encoding.embeddings @ model.encode_texts([text])[0], model.score(text, encoding.tokens)


def engine_places(folder: Path) -> dict[str, Any]:
    return {"edge": folder, "memory": ":memory:", "faiss": (folder, "faiss")}
