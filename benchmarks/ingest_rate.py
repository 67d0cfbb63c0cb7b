"""Compare the speed of `ingest_images` with that of the encoder alone.

    python benchmarks/ingest_rate.py [--model base] [--images 32] [--batch-size 8] [--rounds 3]
        [--photographs] [--out docs/results/ingest_rate_base.json]

The images are drawn scenes of 256 x 256 pixels as PNG files, or, with `--photographs`, of 12
megapixels as JPEG files, with noise like that of a camera, so that they have the size and the
decoding time of a phone's photographs. `encoder` is
`EDJEModel.encode_pixels` on preloaded images; `ingest` reads, decodes, hashes, encodes and writes
them to a new collection of the embedded engine; `all_but` does all of that except the encoding, in
a single thread. They alternate, and the ratios are medians over rounds. `hidden` is the share of
`all_but` that an ingest does in parallel with the encoder.

`--model base` has a vision tower of SigLIP B/16's size at 224 pixels and 64 tokens of 384, with
random weights (speed does not depend on them), and computes on all cores, as an ingest does.
`--model large` has the published model's size, SigLIP2 L/16 at 384 pixels.
`--model demo` is the bundled model, which is hundreds of times smaller, so that the other steps
take a much larger share; it computes with one thread. `--processes 2` adds an ingest with two
processes. The seconds that processes take to start are included, so use some thousand images.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_world import conditions, untrained_model
from PIL import Image

from edje_qdrant import EDJEModel, ImageCollection, ingest_images
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.scenes import draw_scenes
from edje_qdrant.images import image_file_id, open_upright

#: The vision towers by name: arguments of SigLIP's vision configuration.
TOWERS: dict[str, dict[str, int]] = {
    "base": {
        "hidden_size": 768, "intermediate_size": 3072, "image_size": 224, "patch_size": 16,
    },
    "large": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 384, "patch_size": 16,
    },
}  # fmt: skip

#: Width and height of a phone's photograph, and the noise of its sensor, in levels of 255.
PHOTOGRAPH, NOISE = (4032, 3024), 6


def main() -> None:
    """Measure, and print and write the results."""
    options = _options()
    if options.model == "demo":
        torch.set_num_threads(1)
        model = EDJEModel.from_pretrained("demo", device="cpu")
    else:
        torch.manual_seed(0)
        model = untrained_model(**TOWERS[options.model])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = folder / "pictures"
        images.mkdir()
        for number, scene in enumerate(draw_scenes("test", 0, options.images)):
            if options.photographs:
                _photograph(draw(scene), number).save(images / f"{number:05}.jpg", quality=92)
            else:
                draw(scene).save(images / f"{number:05}.png", compress_level=1)
        report = _measure(folder, sorted(images.iterdir()), model, options)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


def _photograph(image: Image.Image, seed: int) -> Image.Image:
    """Return the image with as many pixels as a phone's photograph, and with noise."""
    large = np.asarray(image.resize(PHOTOGRAPH, Image.Resampling.BICUBIC), dtype=np.float32)
    noise = np.random.default_rng(seed).standard_normal(large.shape, dtype=np.float32)
    return Image.fromarray((large + NOISE * noise).clip(0, 255).astype(np.uint8))


def _measure(
    folder: Path, paths: list[Path], model: EDJEModel, options: argparse.Namespace
) -> dict[str, Any]:
    size = options.batch_size
    pixels = [model.preprocess([open_upright(path)]) for path in paths]
    batches = [torch.cat(pixels[i : i + size]) for i in range(0, len(pixels), size)]
    encodings = [model.encode_pixels(batch) for batch in batches]
    made = 0

    def collection() -> ImageCollection:
        nonlocal made
        made += 1
        return ImageCollection.create(folder / f"c{made}", "images", model.contract())

    def encoder() -> None:
        for batch in batches:
            model.encode_pixels(batch)

    def ingest(workers: int, processes: int = 0) -> None:
        with collection() as target:
            report = ingest_images(
                paths, target, model, batch_size=size, workers=workers, processes=processes,
                progress=False,
            )  # fmt: skip
            assert report.added == len(paths)

    def all_but() -> None:
        with collection() as target:
            for at, encoding in enumerate(encodings):
                part = paths[at * size : (at + 1) * size]
                ids = [image_file_id(str(path)) for path in part]
                target.existing(ids)
                for path in part:
                    model.preprocess([open_upright(path)])
                target.add(ids, encoding, [{"path": str(path)} for path in part])
            target.flush()

    calls: dict[str, Callable[[], None]] = {
        "encoder": encoder,
        "all_but": all_but,
        "ingest_2_workers": lambda: ingest(2),
        "ingest_4_workers": lambda: ingest(4),
    }
    if options.processes:
        name = f"ingest_{options.processes}_processes"
        calls[name] = lambda: ingest(2, processes=options.processes)
    walls: dict[str, list[float]] = {name: [] for name in calls}
    processors: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(options.rounds + 1):
        for name, call in calls.items():
            began, processor = time.perf_counter(), _processor_seconds()
            call()
            if turn:  # the first round is the warm-up
                walls[name].append(time.perf_counter() - began)
                processors[name].append(_processor_seconds() - processor)
    wall = {name: np.array(each) for name, each in walls.items()}
    return {
        "model": options.model,
        "pictures": len(paths),
        "file_bytes": round(sum(path.stat().st_size for path in paths) / len(paths)),
        "photographs": options.photographs,
        "batch_size": size,
        "rounds": options.rounds,
        **conditions(),
        "pictures_per_second": {
            name: float(f"{len(paths) / float(np.median(each)):.3g}")
            for name, each in walls.items()
        },
        "processor_seconds": {
            name: round(float(np.median(each)), 3) for name, each in processors.items()
        },
        "ingest_to_encoder": {
            name: round(float(np.median(wall["encoder"] / wall[name])), 3)
            for name in calls
            if name.startswith("ingest")
        },
        "hidden": {
            name: round(
                float(
                    np.median((wall["encoder"] + wall["all_but"] - wall[name]) / wall["all_but"])
                ),
                3,
            )
            for name in ("ingest_2_workers", "ingest_4_workers")
        },
    }


def _processor_seconds() -> float:
    """Return the processor seconds used by this process and its child processes."""
    seconds = sum(os.times()[:4])  # the children that have ended
    for task in Path("/proc/self/task").glob("*/children"):
        for child in task.read_text().split():
            used = Path(f"/proc/{child}/stat").read_text().rsplit(")")[-1].split()[11:13]
            seconds += sum(int(ticks) for ticks in used) / os.sysconf("SC_CLK_TCK")
    return seconds


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=[*TOWERS, "demo"], default="base")
    parser.add_argument("--images", "--pictures", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--processes", type=int, default=0, help="add an ingest with this number of processes"
    )
    parser.add_argument("--photographs", action="store_true", help="JPEG files of 12 megapixels")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
