r"""Measure what tells near-duplicates from other images, and the time to find them.

    python benchmarks/duplicates.py --images FOLDER --out docs/results/duplicates.json
    python benchmarks/duplicates.py --scale 10000 --scale 100000 \
        --out docs/results/duplicates_scale.json
    python benchmarks/duplicates.py --library FOLDER

The originals are photographs that installed packages hold (scikit-image, scikit-learn, matplotlib),
those in the folders given, and scenes of the demo. Each is changed in the ways in which copies
differ: encoded again as JPEG, resized, cropped, brightened, darkened, mirrored, made grey, with a
border, and twice as in a burst (another section, a little brighter, with noise). Photographs and
scenes are measured apart, since the bundled model has only seen scenes. Measured are:

recall      Share of the pairs (original, changed copy) that are found.
precision   Share of true pairs among all pairs of all images that are found. Copies of one original
            are true pairs, whatever the changes.
wrong       Number of pairs of different originals that are found, and how many pairs there are.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from edje_qdrant import EDJEModel, ImageCollection
from edje_qdrant.collection.likeness import NEAR_DUPLICATES, mean_cosine, token_vectors
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.scenes import draw_scenes
from edje_qdrant.images.perceptual_hash import hash_image, small_square
from edje_qdrant.maintenance.duplicates import DuplicateRule, find_duplicates
from edje_qdrant.types import ImageEncoding

SEED = 1
SIDE = 800  # of photographs, at most
PACKAGED = {
    "skimage": [
        f"data/{name}"
        for name in (
            "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png",
            "clock_motion.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
            "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png",
            "retina.jpg", "rocket.jpg", "text.png",
        )
    ],
    "sklearn": ["datasets/images/china.jpg", "datasets/images/flower.jpg"],
    "matplotlib": ["mpl-data/sample_data/grace_hopper.jpg"],
}  # fmt: skip


def main() -> None:
    """Measure, print tables, and write the requested file."""
    options = _options()
    torch.set_num_threads(1)
    model = EDJEModel.from_pretrained(options.model, device="cpu")
    report: dict[str, Any] = {
        "model": options.model,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{platform.machine()}, 1 thread, CPU",
        "command": "python benchmarks/duplicates.py",
    }
    if options.library:
        _write_library(options.library, [*_photographs(options.images)])
    elif options.scale:
        report["scale"] = [_scale(model, count) for count in options.scale]
    else:
        photographs = [*_photographs(options.images)]
        scenes = draw_scenes("test", SEED)
        kinds = {
            "photographs": photographs,
            "scenes": [draw(next(scenes)) for _ in range(options.scenes)],
        }
        report["images"] = {kind: len(images) for kind, images in kinds.items()}
        report["tables"] = {
            kind: _measure(model, images, kind) for kind, images in kinds.items() if images
        }
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="name or folder of the model")
    parser.add_argument("--images", type=Path, action="append", default=[], metavar="FOLDER",
                        help="more photographs, below this folder")  # fmt: skip
    parser.add_argument("--scenes", type=int, default=60, help="scenes of the demo")
    parser.add_argument("--library", type=Path, metavar="FOLDER",
                        help="instead, write photographs and copies into this folder")  # fmt: skip
    parser.add_argument("--scale", type=int, action="append", metavar="COUNT",
                        help="instead, measure the time for that many images")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    return parser.parse_args()


def _photographs(folders: Sequence[Path]) -> Iterator[Image.Image]:
    paths = []
    for package, files in PACKAGED.items():
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            print(f"{package} is not installed; its photographs are left out")
            continue
        paths += [Path(found.origin).parent / file for file in files]
    for folder in folders:
        paths += sorted(p for p in folder.rglob("*") if p.suffix in (".jpg", ".jpeg", ".webp"))
    for path in paths:
        image = Image.open(path).convert("RGB")
        image.thumbnail((SIDE, SIDE))
        yield image


def changed(image: Image.Image, seed: int) -> dict[str, Image.Image]:
    """Return copies of an image by what was changed."""
    width, height = image.size
    return {
        "jpeg 90": _jpeg(image, 90),
        "jpeg 30": _jpeg(image, 30),
        "half size": image.resize((width // 2, height // 2), Image.Resampling.LANCZOS),
        "quarter size": image.resize((width // 4, height // 4), Image.Resampling.LANCZOS),
        "crop 2 %": _crop(image, 0.02),
        "crop 5 %": _crop(image, 0.05, 0.2, 0.8),
        "crop 10 %": _crop(image, 0.10, 0.3, 0.6),
        "brighter 20 %": ImageEnhance.Brightness(image).enhance(1.2),
        "darker 20 %": ImageEnhance.Brightness(image).enhance(0.8),
        "burst": _noisy(_crop(image, 0.06, 0, 0.3), seed),
        "burst, brighter": _noisy(
            ImageEnhance.Brightness(_crop(image, 0.06, 1, 0.5)).enhance(1.04), seed + 1
        ),
        "mirrored": ImageOps.mirror(image),
        "grey": ImageOps.grayscale(image).convert("RGB"),
        "border 5 %": ImageOps.expand(image, round(0.05 * min(width, height)), "white"),
    }


def _write_library(folder: Path, photographs: Sequence[Image.Image]) -> None:
    """Write photographs, and one to four copies of every other one, as JPEGs."""
    rng = np.random.default_rng(SEED)
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(photographs):
        image.save(folder / f"{number:03}.jpg", quality=92)
        if number % 2 == 0:
            copies = changed(image, 2 * number)
            for name in rng.permutation([*copies])[: rng.integers(1, 5)]:
                words = "-".join(name.replace("%", "").replace(",", "").split())
                copies[name].save(folder / f"{number:03}-{words}.jpg", quality=88)


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def _crop(image: Image.Image, share: float, x: float = 0.5, y: float = 0.5) -> Image.Image:
    """Cut a share off each side; `x` and `y` say how much of it left and at the top."""
    width, height = (round(side * (1 - share)) for side in image.size)
    left, top = round((image.width - width) * x), round((image.height - height) * y)
    return image.crop((left, top, left + width, top + height))


def _noisy(image: Image.Image, seed: int) -> Image.Image:
    pixels = np.asarray(image, np.float32)
    noise = np.random.default_rng(seed).normal(0, 6, pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


@dataclass(frozen=True, slots=True)
class Compared:
    """Hold the comparisons of `n` images with each other.

    Attributes:
        original: `(n,)` which original each image is made from.
        change: `(n,)` what was changed; "" for the originals.
        embeddings: `(n, n)` likeness of the embeddings.
        tokens: `(n, n)` likeness of the tokens.
        bits: `(n, n)` differing bits of the hashes.
    """

    original: NDArray[np.intp]
    change: NDArray[np.str_]
    embeddings: NDArray[np.float32]
    tokens: NDArray[np.float32]
    bits: NDArray[np.intp]


def _compare(model: EDJEModel, originals: Sequence[Image.Image]) -> Compared:
    images: list[Image.Image] = []
    original: list[int] = []
    change: list[str] = []
    for number, image in enumerate(originals):
        for name, copy in {"": image, **changed(image, 2 * number)}.items():
            images.append(copy)
            original.append(number)
            change.append(name)
    encodings = [model.encode_images(images[at : at + 64]) for at in range(0, len(images), 64)]
    firsts = np.array(change) == ""
    embeddings = np.concatenate([encoding.embeddings for encoding in encodings])
    tokens = np.concatenate([token_vectors(encoding.tokens) for encoding in encodings])
    hashes = [hash_image(small_square(image)) for image in images]
    plain = np.array([each.bits for each in hashes])
    mirrored = np.array([each.mirrored for each in hashes])
    bits = np.minimum(_differing(plain, plain), _differing(plain, mirrored))
    return Compared(
        np.array(original),
        np.array(change),
        _likeness(embeddings, firsts),
        _likeness(tokens, firsts),
        bits,
    )


def _likeness(vectors: NDArray[np.float32], firsts: NDArray[np.bool_]) -> NDArray[np.float32]:
    mean = mean_cosine(vectors[firsts])
    likeness: NDArray[np.float32] = (vectors @ vectors.T - mean) / (1 - mean)
    return likeness


def _differing(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> NDArray[np.intp]:
    differing: NDArray[np.intp] = np.array([(row != other).sum(axis=1) for row in one])
    return differing


def _measure(model: EDJEModel, originals: Sequence[Image.Image], kind: str) -> dict[str, Any]:
    compared = _compare(model, originals)
    rule = DuplicateRule()
    pairs = len(originals) * (len(originals) - 1) // 2
    print(f"\n{len(originals)} {kind}, {len(compared.change)} images with their copies\n")
    print("| what | least | recall | precision | wrong pairs of originals |")
    print("| --- | --- | --- | --- | --- |")
    confirmed = (
        (compared.embeddings >= rule.embeddings)
        & (compared.tokens >= rule.tokens)
        & (compared.bits <= rule.hash_bits)
    )
    loose = compared.embeddings >= rule.embeddings
    alone = compared.embeddings >= rule.embeddings_alone
    found = {
        ("embedding", str(least)): compared.embeddings >= least
        for least in (0.8, 0.85, 0.9, 0.94, 0.95, 0.96, 0.97, 0.98)
    }
    found |= {
        ("tokens", str(least)): compared.tokens >= least for least in (0.6, 0.7, 0.8, 0.85, 0.9)
    }
    found |= {("hash", f"{most} bits"): compared.bits <= most for most in (4, 8, 10, 12, 14, 16)}
    found["embedding and hash", f"{rule.embeddings}, {rule.hash_bits} bits"] = loose & (
        compared.bits <= rule.hash_bits
    )
    found["embedding and tokens", f"{rule.embeddings}, {rule.tokens}"] = loose & (
        compared.tokens >= rule.tokens
    )
    found["the rule, with files", f"{rule.embeddings}, {rule.tokens}, {rule.hash_bits} bits"] = (
        confirmed
    )
    found["the rule, without files", f"{rule.embeddings_alone}, {rule.tokens}"] = alone & (
        compared.tokens >= rule.tokens
    )
    rows = []
    for (what, least), which in found.items():
        row = {"what": what, "least": least, **_figures(which, compared)}
        rows.append(row)
        print(
            f"| {what} | {least} | {row['recall']:.3f} | {row['precision']:.4f} | "
            f"{row['wrong']} of {pairs:,} |"
        )
    shown = {
        "a search": _figures(compared.embeddings >= NEAR_DUPLICATES, compared)["by_change"],
        "the rule, without files": rows[-1]["by_change"],
        "the rule, with files": rows[-2]["by_change"],
    }
    print(f"\n| change | {' | '.join(shown)} |\n| --- | --- | --- | --- |")
    for change in rows[0]["by_change"]:
        print(f"| {change} | {' | '.join(f'{own[change]:.2f}' for own in shown.values())} |")
    return {"pairs": pairs, "thresholds": rows, "changes": shown}


def _figures(found: NDArray[np.bool_], compared: Compared) -> dict[str, Any]:
    firsts = np.flatnonzero(compared.change == "")
    by_change = {}
    for change in dict.fromkeys(compared.change.tolist()):
        if change:
            by_change[change] = float(
                found[firsts, np.flatnonzero(compared.change == change)].mean()
            )
    same = compared.original[:, None] == compared.original[None]
    upper = np.triu(np.ones_like(found), 1)
    true, false = int((found & same & upper).sum()), int((found & ~same & upper).sum())
    return {
        "recall": float(np.mean([*by_change.values()])),
        "precision": true / (true + false) if true + false else 1.0,
        "wrong": int((found & ~same & upper)[np.ix_(firsts, firsts)].sum()),
        "by_change": {change: round(share, 4) for change, share in by_change.items()},
    }


def _scale(model: EDJEModel, count: int) -> dict[str, Any]:
    """Measure the time for images of which every tenth has two near-duplicates."""
    rng = np.random.default_rng(SEED)
    contract = model.contract()
    vectors = rng.standard_normal((count, contract.embedding_dim)).astype(np.float32)
    tokens = rng.standard_normal((64, contract.num_tokens, contract.token_dim)).astype(np.float16)
    for copy in (1, 2):
        vectors[copy::10] = vectors[0::10][: len(vectors[copy::10])]
    vectors += 0.05 * rng.standard_normal(vectors.shape).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        ImageCollection.create(folder, "images", contract) as collection,
    ):
        began = time.perf_counter()
        for start in range(0, count, 1000):
            part = vectors[start : start + 1000]
            rows = np.arange(start, start + len(part))
            ids = [f"00000000-0000-4000-8000-{row * 7919 % 10**12:012d}" for row in rows]
            own = tokens[rows // 10 % 64]
            collection.add(ids, ImageEncoding(part, own), [{"width": 9, "height": 9}] * len(ids))
        collection.optimize()
        built, began = time.perf_counter() - began, time.process_time()
        report = find_duplicates(collection, hashes=False, progress=True)
        busy = time.process_time() - began
    found = {
        "count": count,
        "engine": "edge",
        "width": contract.embedding_dim,
        "groups": len(report.groups),
        "of": -(-count // 10),
        "extra": len(report.extra_ids),
        "seconds": round(report.seconds, 1),
        "cpu_seconds": round(busy, 1),
        "seconds_to_build": round(built, 1),
    }
    print(found)
    return found


if __name__ == "__main__":
    main()
