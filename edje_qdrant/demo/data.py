"""Scenes as arrays: pixels for the tower, labels of patches, and captions."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from edje_qdrant.demo.captions import Caption, describe
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.scenes import CANVAS, COLOURS, SHAPES, SIZES, Scene, Split, draw_scenes

__all__ = ["captions_for", "patch_labels", "render"]

_CHUNK = 1000


def render(
    split: Split,
    seed: int,
    count: int,
    side: int,
    folder: Path,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[list[Scene], NDArray[np.uint8]]:
    """Draw scenes at the image processor's size; pixels that `folder` has are reused.

    Args:
        split: Split of the scenes.
        seed: Of the scenes.
        count: Number of scenes.
        side: Height and width of the pixels, px.
        folder: For the pixels.
        workers: Processes that draw; by default one for each core.
        progress: Show a bar on stderr.

    Returns:
        The scenes, and their pixels `(count, side, side, 3)` uint8, memory-mapped.
    """
    scenes = list(draw_scenes(split, seed, count))
    path = folder / f"{split}-{seed}-{count}-{side}px.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        pixels = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=np.uint8, shape=(count, side, side, 3)
        )
        chunks = [scenes[i : i + _CHUNK] for i in range(0, count, _CHUNK)]
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            drawn = pool.map(_render_chunk, chunks, [side] * len(chunks))
            bar = tqdm(
                drawn, desc=f"drawing {split} scenes", total=len(chunks), unit="k",
                disable=not progress,
            )  # fmt: skip
            for number, block in enumerate(bar):
                pixels[number * _CHUNK : number * _CHUNK + len(block)] = block
        pixels.flush()
        temporary.replace(path)
    return scenes, np.load(path, mmap_mode="r")


def _render_chunk(scenes: list[Scene], side: int) -> NDArray[np.uint8]:
    size = (side, side)
    return np.stack([np.asarray(draw(s).resize(size, Image.Resampling.BICUBIC)) for s in scenes])


def patch_labels(scenes: list[Scene], grid: int) -> NDArray[np.int64]:
    """Label each patch with the object whose middle part covers the patch's centre.

    Returns:
        `(scenes, grid * grid, 3)` int64: shape, colour and size; for background, the number of
        shapes, of colours and of sizes.
    """
    patch = CANVAS / grid
    centre = (np.arange(grid) + 0.5) * patch
    y, x = (c.ravel() for c in np.meshgrid(centre, centre, indexing="ij"))  # row by row
    labels = np.full((len(scenes), grid * grid, 3), (len(SHAPES), len(COLOURS), len(SIZES)))
    for number, scene in enumerate(scenes):
        nearest = np.full(grid * grid, np.inf)
        for item in scene.objects:
            distance = np.hypot(x - item.x, y - item.y)
            covered = distance < max(0.45 * item.diameter, 0.75 * patch)
            closer = covered & (distance / item.diameter < nearest)
            labels[number, closer] = item.shape, item.colour, item.size
            nearest[closer] = distance[closer] / item.diameter
    return labels


def captions_for(scenes: list[Scene], seed: int) -> list[Caption]:
    """Write one caption per scene; the same seed gives the same captions."""
    rng = np.random.default_rng([seed, 4711])
    return [describe(scene, rng) for scene in scenes]
