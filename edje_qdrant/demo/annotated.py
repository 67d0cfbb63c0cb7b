"""Held-out scenes as an annotation file, for evaluation like any other data."""

from __future__ import annotations

import json
from pathlib import Path

from edje_qdrant.demo.captions import truth_matrix
from edje_qdrant.demo.run import draw_images, scene_captions, scene_name
from edje_qdrant.demo.scenes import draw_scenes
from edje_qdrant.files import os_errors_as_store_errors, write_atomically

__all__ = ["CALIBRATION_SEED", "SCENES", "scene_matches", "write_scenes"]

#: Number of scenes of the demo.
SCENES = 1000

#: Seed of the scenes for calibration; those of the demo are for evaluation.
CALIBRATION_SEED = 2


def write_scenes(
    folder: str | Path, *, count: int = SCENES, seed: int = 1, progress: bool = True
) -> Path:
    """Draw the demo's scenes into `folder/pictures` and write `folder/scenes.jsonl`.

    Args:
        folder: Output folder; existing scenes are not drawn again.
        count: Number of scenes, at least 20.
        seed: Of scenes and captions.
        progress: Show a bar on stderr.

    Returns:
        The annotation file, with an image and the demo's caption of it per line.

    Raises:
        ConfigError: `count` is less than 20.
        StoreError: The folder cannot be written.
    """
    folder = Path(folder)
    captions = draw_images(folder / "pictures", count, seed, progress=progress)
    lines = [
        json.dumps({"image": f"pictures/{scene_name(number)}", "caption": caption})
        for number, caption in enumerate(captions)
    ]
    path = folder / "scenes.jsonl"
    with os_errors_as_store_errors("write", path):
        write_atomically(path, ("\n".join(lines) + "\n").encode())
    return path


def scene_matches(folder: str | Path, *, count: int = SCENES, seed: int = 1) -> dict[str, set[str]]:
    """Return caption -> paths of all images it is true of, for the scenes of `write_scenes`.

    One caption in ten is true of more images than its own.

    Args:
        folder: As given to `write_scenes`.
        count: Likewise.
        seed: Likewise.
    """
    scenes = list(draw_scenes("test", seed, count))
    captions = scene_captions(scenes, seed)
    paths = [
        str(Path(folder).absolute() / "pictures" / scene_name(number)) for number in range(count)
    ]
    matches: dict[str, set[str]] = {}
    for caption, row in zip(captions, truth_matrix(captions, scenes), strict=True):
        true = {paths[number] for number in row.nonzero()[0]}
        matches.setdefault(caption.text, set()).update(true)
    return matches
