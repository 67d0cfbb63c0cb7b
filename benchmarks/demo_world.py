"""What several benchmarks share: a collection of drawn scenes, their captions, and the machine."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from edje_qdrant import EDJEModel, ImageCollection
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.run import scene_captions
from edje_qdrant.demo.scenes import draw_scenes

BATCH = 50


def demo_collection(
    folder: Path, model: EDJEModel, pictures: int, **options: Any
) -> tuple[ImageCollection, list[str]]:
    """Make a collection of held-out scenes; return it and a caption of each."""
    scenes = list(draw_scenes("test", 0, pictures))
    collection = ImageCollection.create(folder, "images", model.contract(), **options)
    for start in range(0, pictures, BATCH):
        part = range(start, min(start + BATCH, pictures))
        ids = [f"00000000-0000-4000-8000-{number:012d}" for number in part]
        payloads = [
            {"path": f"/pictures/scene-{n:04d}.png", "width": 256, "height": 256} for n in part
        ]
        collection.add(ids, model.encode_images([draw(scenes[n]) for n in part]), payloads)
    collection.flush()
    collection.optimize()
    return collection, [caption.text for caption in scene_captions(scenes, 0)]


def conditions() -> dict[str, Any]:
    """Say when and on what a benchmark ran."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores, "
        f"{'CUDA' if torch.cuda.is_available() else 'no GPU'}",
        "load_average": round(os.getloadavg()[0], 1),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("edje-qdrant", "torch", "numpy")},
        },
    }
