"""The demo: ingest a thousand drawn images, search them, and report the gain of reranking."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.demo.captions import Caption, describe
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.scenes import Scene, draw_scenes
from edje_qdrant.errors import ConfigError, StoreError
from edje_qdrant.evaluation.contact_sheet import SheetRow, draw_contact_sheet
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.metrics import recall_at
from edje_qdrant.model import EDJEModel
from edje_qdrant.search.results import SearchResult
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.text import printable
from edje_qdrant.threads import in_threads
from edje_qdrant.types import IngestReport

__all__ = ["NUM_CANDIDATES", "DemoReport", "draw_images", "run_demo"]

NUM_CANDIDATES = 50
_EXAMPLES = 5
_STAGES = ("encode", "retrieve", "fetch", "rerank", "total")


@dataclass(frozen=True, slots=True)
class Example:
    """A query and its right image's rank before and after reranking; None: not retrieved."""

    query: str
    first_rank: int | None
    final_rank: int | None


@dataclass(frozen=True, slots=True)
class DemoReport:
    """Results of the demo.

    Attributes:
        images: Images in the collection.
        queries: Number of captions searched for, one per image.
        num_candidates: Images reranked per query.
        first_stage: R@1, R@5 and R@10 of the vector search alone.
        reranked: The same after reranking.
        examples: Queries whose right image changed its rank, evenly chosen.
        bytes_per_image: Size of an image's stored tokens.
        timings_ms: Mean time per query, by stage.
        ingest: Report of the ingest.
        contact_sheet: File of the contact sheet.
        index: Folder of the collection.
    """

    images: int
    queries: int
    num_candidates: int
    first_stage: dict[str, float]
    reranked: dict[str, float]
    examples: tuple[Example, ...]
    bytes_per_image: int
    timings_ms: dict[str, float]
    ingest: IngestReport
    contact_sheet: Path
    index: Path

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {
            "pictures": self.images,
            "queries": self.queries,
            "num_candidates": self.num_candidates,
            "first_stage": self.first_stage,
            "reranked": self.reranked,
            "bytes_per_picture": self.bytes_per_image,
            "timings_ms": self.timings_ms,
            "examples": [
                {"query": e.query, "first_rank": e.first_rank, "final_rank": e.final_rank}
                for e in self.examples
            ],
            "ingest": {
                "added": self.ingest.added,
                "skipped": self.ingest.skipped,
                "images_per_second": round(self.ingest.images_per_second, 1),
            },
            "contact_sheet": str(self.contact_sheet),
            "index": str(self.index),
        }

    def text(self) -> str:
        """Return the report as text."""
        cuts = ("R@1", "R@5", "R@10")
        index = printable(str(self.index))
        lines = [
            f"{self.queries} captions asked of {self.images} images, "
            f"{self.num_candidates} candidates reranked",
            "",
            "                 " + "".join(f"{k:>8}" for k in cuts),
            "  first stage    " + "".join(f"{self.first_stage[k]:>8.1%}" for k in cuts),
            "  reranked       " + "".join(f"{self.reranked[k]:>8.1%}" for k in cuts),
            "",
            "Where the right image stood before and after, in queries that moved it:",
        ]
        lines += [
            f"  {_place(e.first_rank):>5} -> {_place(e.final_rank):<5} {e.query}"
            for e in self.examples
        ]
        stages = ", ".join(f"{k} {self.timings_ms[k]:.1f}" for k in _STAGES)
        lines += [
            "",
            f"Tokens: {self.bytes_per_image:,} bytes an image. Milliseconds a query: {stages}.",
            f"Look at {printable(str(self.contact_sheet))}",
            "",
            "Try next:",
            f'  edje-qdrant search "a red star above a blue ring" --index {index}',
            f"  edje-qdrant info --index {index}",
            "  edje-qdrant ingest IMAGES --index ./photos      (your own images)",
        ]
        return "\n".join(lines)


def draw_images(folder: Path, count: int, seed: int, *, progress: bool = True) -> list[str]:
    """Draw held-out scenes to `folder/scene-0000.png` and so on; existing files are reused.

    Returns:
        One caption per image, in order.

    Raises:
        ConfigError: `count` is less than 20.
        StoreError: The folder cannot be written.
    """
    if count < 20:
        raise ConfigError(f"the demo needs at least 20 images, got {count}")
    scenes = list(draw_scenes("test", seed, count))
    captions = [caption.text for caption in scene_captions(scenes, seed)]
    paths = [folder / scene_name(number) for number in range(count)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in set(folder.glob("scene-*.png")) - set(paths):
            stale.unlink()
        missing = [n for n, path in enumerate(paths) if not path.exists()]
        # Most of the work is Pillow's, which runs beside other threads.
        workers = os.cpu_count() or 1
        with ThreadPoolExecutor(workers) as pool:
            drawn = in_threads(
                pool, lambda n: _draw_file(scenes[n], paths[n]), missing, ahead=2 * workers
            )
            for _ in tqdm(
                drawn, desc="drawing", unit=" images", total=len(missing), disable=not progress
            ):
                pass
    except OSError as error:
        raise StoreError(f"cannot write images to {folder}: {error}") from error
    return captions


def _draw_file(scene: Scene, path: Path) -> None:
    temporary = path.with_suffix(".part")
    draw(scene).save(temporary, format="png", compress_level=1)
    temporary.replace(path)


def scene_captions(scenes: Sequence[Scene], seed: int) -> list[Caption]:
    """Write one caption per scene; the same seed gives the same captions."""
    rng = np.random.default_rng([seed, 99])
    return [describe(scene, rng) for scene in scenes]


def scene_name(number: int) -> str:
    """Return the file name of a scene's image."""
    return f"scene-{number:04d}.png"


def run_demo(
    folder: Path,
    *,
    images: int = 1000,
    num_candidates: int = NUM_CANDIDATES,
    model: str = "demo",
    seed: int = 1,
    progress: bool = True,
) -> DemoReport:
    """Draw held-out scenes, ingest them, search for one caption per image, and report.

    Images and index of an earlier run in `folder` are reused.

    Args:
        folder: For images, index and contact sheet.
        images: Number of scenes; their content did not occur in the bundled model's training.
        num_candidates: Images reranked per query, at least 10.
        model: Name or folder of the model.
        seed: Of scenes and captions.
        progress: Show progress bars on stderr.

    Raises:
        ConfigError: `images` is less than 20 or `num_candidates` less than 10.
        StoreError: The folder cannot be written, or holds an index of another model.
    """
    if num_candidates < 10:
        raise ConfigError(f"R@10 needs at least 10 candidates, got {num_candidates}")
    captions = draw_images(folder / "pictures", images, seed, progress=progress)
    edje = EDJEModel.from_pretrained(model)
    # Each number of images and seed has its own index.
    index = folder / f"index-{images}-{seed}"
    with _collection(index, edje) as collection:
        items = [
            (folder / "pictures" / f"scene-{number:04d}.png", {"caption": caption})
            for number, caption in enumerate(captions)
        ]
        ingest = ingest_images(items, collection, edje, progress=progress)
        retriever = TwoStageRetriever(collection, edje)
        asked = tqdm(captions, desc="asking", unit=" queries", disable=not progress)
        count = min(num_candidates, images)
        results = [retriever.search(c, top_k=count, num_candidates=count) for c in asked]
        size, nbytes = collection.count(), collection.bytes_per_image()
    rights = [
        (folder / "pictures" / f"scene-{number:04d}.png").absolute() for number in range(images)
    ]
    first = [_find(r, right, final=False) for r, right in zip(results, rights, strict=True)]
    final = [_find(r, right, final=True) for r, right in zip(results, rights, strict=True)]
    moved = [n for n in range(images) if first[n] != final[n]]
    shown = [moved[i * len(moved) // _EXAMPLES] for i in range(min(_EXAMPLES, len(moved)))]
    before, after = ({f"R@{k}": recall_at(r, k) for k in (1, 5, 10)} for r in (first, final))
    sheet = (folder / "results.png").absolute()
    draw_contact_sheet(
        [_row(results[n], rights[n], first[n], final[n]) for n in shown],
        f"{images} drawn scenes never seen in training: R@1 {before['R@1']:.1%} -> "
        f"{after['R@1']:.1%}",
        sheet,
    )
    timings = [r.timings.as_dict() for r in results]
    return DemoReport(
        images=size,
        queries=len(captions),
        num_candidates=count,
        first_stage=before,
        reranked=after,
        examples=tuple(Example(captions[n], first[n], final[n]) for n in shown),
        bytes_per_image=nbytes,
        timings_ms={k: round(float(np.mean([t[k] for t in timings])), 2) for k in _STAGES},
        ingest=ingest,
        contact_sheet=sheet,
        index=index,
    )


def _collection(index: Path, model: EDJEModel) -> ImageCollection:
    return ImageCollection.open_or_create(index, "images", model.contract())


def _find(result: SearchResult, right: Path, *, final: bool) -> int | None:
    for hit in result:
        if Path(hit.payload["path"]) == right:
            return hit.rank if final else hit.retrieval_rank
    return None


def _row(result: SearchResult, right: Path, first: int | None, final: int | None) -> SheetRow:
    before = sorted(result, key=lambda hit: hit.retrieval_rank)
    return SheetRow(
        query=result.query,
        right=[right],
        first_stage=[Path(hit.payload["path"]) for hit in before[:5]],
        reranked=[Path(hit.payload["path"]) for hit in result[:5]],
        first_rank=first,
        final_rank=final,
    )


def _place(rank: int | None) -> str:
    return "none" if rank is None else f"#{rank}"
