"""A small world to break: images, a model, collections, and what searches of them must say."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from tiny_edje import build_tiny_model

from edje_qdrant.collection.collection import ImageCollection, user_payload
from edje_qdrant.collection.references import reference_of
from edje_qdrant.errors import CollectionNotFoundError
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.maintenance import scan as points
from edje_qdrant.maintenance import verify
from edje_qdrant.model import EDJEModel
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.search.results import SearchResult
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.tokens.codec_file import read_codec, write_codec
from edje_qdrant.tokens.codecs import Codec, codec_for
from edje_qdrant.tokens.file_store import FileTokenStore
from edje_qdrant.types import ImageEncoding

QUERIES = ("a red cat on a mat", "two boats at sea", "blue")
NUM_TOKENS, TOKEN_DIM = 4, 16
#: Four float16 records a side file, so that a handful of images fills several.
SEGMENT_BYTES = 4 * NUM_TOKENS * TOKEN_DIM * 2


def shrink() -> None:
    """Let a handful of images fill several side files, and several pages of maintenance.

    For the server alone: this lasts as long as the process.
    """
    points.PAGE = 5
    FileTokenStore.create.__func__.__kwdefaults__["segment_bytes"] = SEGMENT_BYTES  # type: ignore[attr-defined]


@cache
def model(seed: int = 0) -> EDJEModel:
    """The small model, which encodes images one at a time; with another seed, another one.

    How many images are encoded together moves an embedding's last bits, and runs that were
    killed meet other batches than runs that were not.
    """
    tiny = build_tiny_model(seed).place("cpu", None)
    start = tiny.start_encoding

    def one_at_a_time(pixels: torch.Tensor) -> Callable[[], ImageEncoding]:
        parts = [start(pixel)() for pixel in pixels.split(1)]
        encoding = ImageEncoding(
            np.concatenate([part.embeddings for part in parts]),
            np.concatenate([part.tokens for part in parts]),
        )
        return lambda: encoding

    tiny.start_encoding = one_at_a_time  # type: ignore[method-assign]
    return tiny


def draw_images(folder: Path, n: int, seed: int = 0) -> list[Path]:
    """Draw `n` different images of a few bright shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = []
    for number in range(n):
        image = Image.new("RGB", (48, 40), tuple(rng.integers(0, 256, 3).tolist()))
        pen = ImageDraw.Draw(image)
        for shape in (pen.ellipse, pen.rectangle, pen.ellipse):
            x, y = rng.integers(0, 30, 2).tolist()
            w, h = rng.integers(5, 30, 2).tolist()
            shape((x, y, x + w, y + h), fill=tuple(rng.integers(0, 256, 3).tolist()))
        paths.append(folder / f"{seed}-{number:03}.png")
        image.save(paths[-1])
    return paths


def write_codebook(pipe: int, path: str, seed: int = 0) -> None:
    """Fit a codebook to tokens of drawn images and keep it."""
    pictures = [
        Image.fromarray(p)
        for p in np.random.default_rng(seed).integers(0, 256, (80, 32, 32, 3), dtype=np.uint8)
    ]
    tokens = model().encode_images(pictures).tokens
    codec = codec_for("pq16", NUM_TOKENS, TOKEN_DIM).fit(tokens, seed=seed)
    write_codec(codec, path, contract=model().contract())


def codec_of(name: str) -> Codec:
    """The codec of a name, or of a file with a codebook."""
    if name.endswith(".safetensors"):
        return read_codec(name, NUM_TOKENS, TOKEN_DIM)
    return codec_for(name, NUM_TOKENS, TOKEN_DIM)


def opened(folder: str, tokens: str = "file", codec: str = "float16") -> ImageCollection:
    """Open the collection in a folder, or make it."""
    try:
        return ImageCollection.open(folder, "images")
    except CollectionNotFoundError:
        return ImageCollection.create(
            folder,
            "images",
            model().contract(),
            tokens=tokens,  # type: ignore[arg-type]
            codec=codec_of(codec),
        )


def ingest(folder: str, pictures: Any, tokens: str = "file", codec: str = "float16") -> None:
    """Bring images into a collection, made if it is missing, four at a time."""
    with opened(folder, tokens, codec) as collection:
        ingest_images(
            pictures, collection, model(), batch_size=4, checkpoint_every=8, progress=False
        )


def searched(collection: ImageCollection, seed: int = 0, **options: Any) -> list[SearchResult]:
    """Every query's ranking of all images, each pair scored by itself."""
    everything = max(1, collection.count())
    own = model(seed)
    retriever = TwoStageRetriever(collection, own, reranker=Reranker(own, batch_size=1))
    return retriever.search_batch(QUERIES, top_k=everything, num_candidates=everything, **options)


def rankings_of(results: list[SearchResult]) -> list[list[list[str]]]:
    """Rankings to compare bit for bit, in a form that JSON keeps."""
    return [
        [[hit.image_id, _exact(hit.score), _exact(hit.retrieval_score)] for hit in result]
        for result in results
    ]


def state_of(collection: ImageCollection) -> dict[str, Any]:
    """What must be the same however often writing was interrupted."""
    found = [point for page in collection.index.scroll(batch_size=5) for point in page]
    report = verify(collection, images=True)
    return {
        "ids": sorted(point.id for point in found),
        "count": collection.count(),
        "payloads": {point.id: user_payload(point.payload) for point in found},
        "referring": all(reference_of(point.payload) for point in found),
        "points": report.points,
        "findings": [[f.kind, f.image_id, f.detail] for f in report.findings],
        "codecs": [collection.codec.key, collection.index.metadata["contract"]["codec"]],
        "rankings": rankings_of(searched(collection)),
    }


def state(pipe: int, folder: str) -> dict[str, Any]:
    """As a task: the state of the collection in a folder."""
    with ImageCollection.open(folder, "images") as collection:
        return state_of(collection)


def copy_folder(old: Path, new: Path) -> Path:
    """Copy a folder with the holes of its files; the engine's take 130 MB, nearly all holes."""
    shutil.copytree(old, new, copy_function=_copy_with_holes)
    return new


def _copy_with_holes(old: str, new: str) -> str:
    with open(old, "rb") as source, open(new, "wb") as target:
        size, at = os.fstat(source.fileno()).st_size, 0
        while at < size:
            try:
                at = os.lseek(source.fileno(), at, os.SEEK_DATA)
            except OSError:  # nothing but a hole from here on
                break
            end = os.lseek(source.fileno(), at, os.SEEK_HOLE)
            os.pwrite(target.fileno(), os.pread(source.fileno(), end - at, at), at)
            at = end
        target.truncate(size)
    shutil.copystat(old, new)
    return new


def _exact(number: float | None) -> str:
    return "none" if number is None else number.hex()
