r"""Measure a migration to another model, and the searches during it.

    python benchmarks/migration.py --images 400 --out docs/results/migration.json

Drawn scenes are ingested with the bundled model, into a folder. Then they are migrated to the same
model with another adapter, in a thread of the process that searches, which is the dearest case: on
a server, the migration runs in a process, or on a machine, of its own. Measured are:

ingest      Seconds of the first ingest with the old model.
encode      Seconds of `migrate`.
cut_over    Seconds of `cut_over`, which compares all images once more.
drop_old    Seconds of `drop_old`.
searches    Milliseconds of a search (median, and 95th percentile) with the old model before and
            during `migrate`, and with the new one after the cut-over. During it, a search waits
            for the cores that encode.
bytes       Of the folder on the disk, before, with both sides, and after `drop_old`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_world import conditions

from edje_qdrant import EDJEModel, ImageCollection, TwoStageRetriever, ingest_images
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.run import scene_captions
from edje_qdrant.demo.scenes import draw_scenes
from edje_qdrant.migration import compare_rankings, cut_over, drop_old, migrate

SEARCHES = 60


def main() -> None:
    """Measure, print the figures, and write the requested file."""
    options = _options()
    torch.set_num_threads(1)
    old, new = (EDJEModel.from_pretrained("demo", device="cpu") for _ in range(2))
    with torch.no_grad():
        next(new.adapter.parameters()).mul_(1.01)
    with tempfile.TemporaryDirectory() as folder:
        report = {
            "command": f"python benchmarks/migration.py --images {options.images}",
            "conditions": conditions(),
            "images": options.images,
            **_measure(Path(folder), old, new, options.images),
        }
    print(json.dumps(report, indent=2))
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400, help="scenes to draw")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    return parser.parse_args()


def _measure(folder: Path, old: EDJEModel, new: EDJEModel, images: int) -> dict[str, Any]:
    scenes = [*draw_scenes("test", 0, images)]
    (folder / "pictures").mkdir()
    for number, scene in enumerate(scenes):
        draw(scene).save(folder / "pictures" / f"{number:05}.png")
    texts = [caption.text for caption in scene_captions(scenes, 0)]
    index = folder / "index"
    seconds: dict[str, float] = {}
    searches: dict[str, Any] = {}
    nbytes: dict[str, int] = {}
    with ImageCollection.create(index, "images", old.contract()) as collection:
        seconds["ingest"] = _timed(
            lambda: ingest_images(folder / "pictures", collection, old, progress=False)
        )
        retriever = TwoStageRetriever(collection, old)
        asked = cycle(texts)
        _latencies(retriever, asked, lambda done: done < 10)  # to warm up
        searches["before"] = _latencies(retriever, asked, lambda done: done < SEARCHES)
        nbytes["before"] = _bytes(index)
        work = threading.Thread(
            target=lambda: seconds.update(
                encode=_timed(lambda: migrate(collection, new, progress=False))
            )
        )
        work.start()
        searches["during"] = _latencies(retriever, asked, lambda _: work.is_alive())
        work.join()
        agreement = compare_rankings(collection, old, new, texts[:50])
        seconds["cut_over"] = _timed(lambda: cut_over(collection, new, progress=False))
    with ImageCollection.open(index, "images") as collection:
        retriever = TwoStageRetriever(collection, new)
        _latencies(retriever, asked, lambda done: done < 10)
        searches["after"] = _latencies(retriever, asked, lambda done: done < SEARCHES)
        nbytes["both"] = _bytes(index)
        seconds["drop_old"] = _timed(lambda: drop_old(collection))
    nbytes["after"] = _bytes(index)
    return {
        "seconds": {what: round(value, 2) for what, value in seconds.items()},
        "searches": searches,
        "bytes": nbytes,
        "overlap": agreement.overlap,
    }


def _timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def _latencies(
    retriever: TwoStageRetriever, texts: Iterator[str], go_on: Callable[[int], bool]
) -> dict[str, float]:
    """Search one text after the other; return milliseconds."""
    found: list[float] = []
    while go_on(len(found)):
        began = time.perf_counter()
        retriever.search(next(texts))
        found.append(1000 * (time.perf_counter() - began))
    return {
        "count": len(found),
        "median_ms": round(float(np.median(found)), 1),
        "p95_ms": round(float(np.percentile(found, 95)), 1),
    }


def _bytes(folder: Path) -> int:
    """Return the bytes that a folder takes on the disk; the engine's files have holes."""
    paths = [Path(place, name) for place, _, names in os.walk(folder) for name in names]
    return sum(512 * path.stat().st_blocks for path in paths)


if __name__ == "__main__":
    main()
