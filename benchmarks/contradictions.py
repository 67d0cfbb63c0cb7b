"""Measure which facts of a caption each stage reads, on held-out scenes.

    OMP_NUM_THREADS=1 python benchmarks/contradictions.py --out docs/results/contradictions.json
    OMP_NUM_THREADS=1 python benchmarks/contradictions.py --model FOLDER --name NAME --out FILE

Each scene's own caption is compared with the same caption after one fact was changed: a relation
reversed; the places, colours or shapes of two objects swapped; a size or a colour replaced.
Counted is how often the true caption scores higher: 50 % is chance, and a tie counts half. Changed
captions that are true as well are left out. A result of another name in `--out` is kept.
"""

from __future__ import annotations

import argparse
import json
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edje_qdrant import EDJEModel
from edje_qdrant.demo.captions import CHANGES, Caption, Change, contradict, describe, truth_matrix
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.scenes import Scene, draw_scenes
from edje_qdrant.evaluation.bootstrap import interval, resampled_means

SEED = 1


def main() -> None:
    """Measure one model, write and print all results."""
    options = _options()
    model = EDJEModel.from_pretrained(options.model, device="cpu")
    scenes = list(draw_scenes("test", SEED, options.scenes))
    captions = _captions(scenes)
    encoding = [model.encode_images([draw(s) for s in part]) for part in _parts(scenes)]
    embeddings = np.concatenate([part.embeddings for part in encoding])
    tokens = np.concatenate([part.tokens for part in encoding])

    def scores(texts: list[str], rows: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        first = (model.encode_texts(texts) * embeddings[rows]).sum(-1)
        joint = model.score_pairs(texts, tokens[rows])
        return {"first stage": first.astype(float), "joint encoder": joint.astype(float)}

    own = scores([c.text for c in captions], np.arange(len(scenes)))
    changes: dict[str, Any] = {}
    for change in CHANGES:
        false, rows = _changed(captions, scenes, change)
        changes[change] = {"captions": len(rows)}
        for stage, wrong in scores([c.text for c in false], rows).items():
            right = own[stage][rows]
            higher = (right > wrong) + 0.5 * (right == wrong)
            low, high = interval(resampled_means(higher[:, None], rows)[:, 0])
            changes[change][stage] = [round(float(x), 4) for x in (higher.mean(), low, high)]
    result = {
        "scenes": len(scenes),
        "changes": changes,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    results = {**_read(options.out), options.name: result}
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for name, found in results.items():
        print(f"{name}, {found['scenes']:,} scenes")
        for change, figures in found["changes"].items():
            shares = ", ".join(f"{s} {figures[s][0]:.1%}" for s in own)
            print(f"  {change:9} {figures['captions']:5} captions: {shares}")


def _captions(scenes: list[Scene]) -> list[Caption]:
    rng = np.random.default_rng([SEED, 7])
    return [describe(s, rng) for s in scenes]


def _changed(
    captions: list[Caption], scenes: list[Scene], change: Change
) -> tuple[list[Caption], NDArray[np.int64]]:
    """Return the changed captions that are false of their own scenes, and the scenes' rows."""
    rng = np.random.default_rng([SEED, 8])
    false = [contradict(c, rng, change) for c in captions]
    wrong = [not truth_matrix([c], [s])[0, 0] for c, s in zip(false, scenes, strict=True)]
    if change == "size":  # a caption without a size changed its colour instead
        sizes = [[m.size for m in c.mentions] for c in captions]
        same = [[m.size for m in c.mentions] for c in false]
        wrong = [w and a != b for w, a, b in zip(wrong, sizes, same, strict=True)]
    rows = np.flatnonzero(wrong)
    return [false[row] for row in rows], rows


def _parts(scenes: list[Scene], size: int = 250) -> list[list[Scene]]:
    return [scenes[start : start + size] for start in range(0, len(scenes), size)]


def _read(path: Path | None) -> dict[str, dict[str, Any]]:
    if path is None or not path.exists():
        return {}
    results: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return results


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="name or folder of the model")
    parser.add_argument("--name", default="bundled model", help="of the model in the results")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
