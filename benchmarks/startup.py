"""Measure start-up times: imports, the command line's help, opening a collection.

    python benchmarks/startup.py [--runs 9] [--images 100000] [--light] [--out startup.json]

Times are medians over new processes. The commands alternate with `python -c pass`, whose time is
subtracted in `beyond_python_ms`. Reported are wall-clock time and processor time; the latter is
hardly affected by other work on the machine. `open` is the time of `ImageCollection.open` in a
process that has imported it and opened another collection before, for images with synthetic vectors
of 64 dimensions in the embedded engine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from demo_world import conditions

from edje_qdrant import ImageCollection, TokenContract
from edje_qdrant.types import ImageEncoding

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import edje_qdrant": ["-c", "import edje_qdrant"],
    "edje-qdrant --help": ["-m", "edje_qdrant", "--help"],
    "edje-qdrant search --help": ["-m", "edje_qdrant", "search", "--help"],
    "import torch": ["-c", "import torch"],
    "from edje_qdrant import TwoStageRetriever": [
        "-c",
        "from edje_qdrant import TwoStageRetriever",
    ],
    "EDJEModel.from_pretrained('demo')": [
        "-c",
        "from edje_qdrant import EDJEModel; EDJEModel.from_pretrained('demo')",
    ],
}
# These load torch.
HEAVY = [
    "import torch",
    "from edje_qdrant import TwoStageRetriever",
    "EDJEModel.from_pretrained('demo')",
]
PAGE = 2000


def main() -> None:
    """Measure, and print and write the results."""
    options = _options()
    commands = {name: c for name, c in COMMANDS.items() if not (options.light and name in HEAVY)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(options.runs + 1):
        for name, arguments in commands.items():
            times[name].append(_run([sys.executable, *arguments]))
    base = np.median(times["python -c pass"][1:], axis=0)
    rows = []
    for name, found in times.items():
        wall, processor = np.median(found[1:], axis=0)  # the first run fills the page cache
        rows.append(
            {
                "what": name,
                "wall_ms": round(1000 * wall, 1),
                "processor_ms": round(1000 * processor, 1),
                "beyond_python_ms": round(1000 * (wall - base[0]), 1),
                "beyond_python_processor_ms": round(1000 * (processor - base[1]), 1),
                "to_python": round(wall / base[0], 2),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    report: dict[str, Any] = {"runs": options.runs, **conditions(), "rows": rows}
    if options.images:
        with tempfile.TemporaryDirectory() as folder:
            _fill(Path(folder), options.images)
            code = (
                "import sys, time; from edje_qdrant import ImageCollection\n"
                "ImageCollection.open(sys.argv[1], 'small').close()\n"
                "began, processor = time.perf_counter(), time.process_time()\n"
                "collection = ImageCollection.open(sys.argv[1], 'images')\n"
                "print(time.perf_counter() - began, time.process_time() - processor)\n"
                "collection.close()"
            )
            found = []
            for _ in range(3):
                done = subprocess.run(
                    [sys.executable, "-c", code, folder], check=True, capture_output=True, text=True
                )
                found.append([float(word) for word in done.stdout.split()])
            wall, processor = np.median(found, axis=0)
            report["open"] = {
                "pictures": options.images,
                "wall_ms": round(1000 * wall, 1),
                "processor_ms": round(1000 * processor, 1),
            }
            print(json.dumps(report["open"]))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _run(command: list[str]) -> tuple[float, float]:
    """Return the wall-clock and processor seconds of a process."""
    began, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    processor = after.children_user - before.children_user
    processor += after.children_system - before.children_system
    return time.perf_counter() - began, processor


def _fill(folder: Path, images: int) -> None:
    rng = np.random.default_rng(0)
    contract = TokenContract("synthetic", "0", "0", 64, "0", num_tokens=1, token_dim=8)
    for name, size in (("small", 10), ("images", images)):
        with ImageCollection.create(folder, name, contract) as collection:
            for start in range(0, size, PAGE):
                numbers = range(start, min(start + PAGE, size))
                vectors = rng.standard_normal((len(numbers), 64), dtype=np.float32)
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
                tokens = rng.standard_normal((len(numbers), 1, 8)).astype(np.float16)
                collection.add(
                    [str(uuid.UUID(int=number + 1)) for number in numbers],
                    ImageEncoding(vectors, tokens),
                    [{"path": f"{number}.jpg"} for number in numbers],
                )
            collection.flush()
            collection.optimize()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument(
        "--images",
        "--pictures",
        type=int,
        default=100_000,
        help="images of the collection to open; 0 for none",
    )
    parser.add_argument("--light", action="store_true", help="leave out what loads torch")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
