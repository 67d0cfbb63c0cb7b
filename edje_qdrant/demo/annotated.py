"""Held-out scenes as an annotation file, to measure on as on any other data."""

from __future__ import annotations

import json
from pathlib import Path

from edje_qdrant.demo.run import draw_pictures
from edje_qdrant.durable import os_errors_as_store_errors, write_atomically

__all__ = ["SCENES", "write_scenes"]

#: As many as the demo draws.
SCENES = 1000


def write_scenes(
    folder: Path, *, count: int = SCENES, seed: int = 1, progress: bool = True
) -> Path:
    """Draw the demo's scenes into `folder/pictures` and write `folder/scenes.jsonl`.

    Args:
        folder: Where to; scenes that are there already are not drawn again.
        count: Scenes, 20 or more.
        seed: Of scenes and captions.
        progress: Show a bar on stderr.

    Returns:
        The annotation file: each line a picture and the caption that the demo asks of it.

    Raises:
        ConfigError: `count` is less than 20.
        StoreError: The folder cannot be written.
    """
    captions = draw_pictures(folder / "pictures", count, seed, progress=progress)
    lines = [
        json.dumps({"image": f"pictures/scene-{number:04d}.png", "caption": caption})
        for number, caption in enumerate(captions)
    ]
    path = folder / "scenes.jsonl"
    with os_errors_as_store_errors("write", path):
        write_atomically(path, ("\n".join(lines) + "\n").encode())
    return path
