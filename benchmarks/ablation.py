"""Train variants of the demo's joint encoder on scenes and measure each on held-out ones.

    python benchmarks/ablation.py --work runs/demo --out docs/results/ablation.json [VARIANT ...]

All variants share the bundled model's encoder, the drawn scenes, the seed and the number of steps;
each changes one setting. A variant that is in the result file already, with the same number of
steps, is skipped, so that an interrupted run can be continued. Prints a table of all results.

Training scenes are drawn and encoded once into WORK (7 GB). Held-out scenes are the demo's: 1,000
images, one caption each, 50 candidates, measured as `edje-qdrant eval --in-memory` does.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edje_qdrant import EDJEModel
from edje_qdrant.data.annotations import read_annotations
from edje_qdrant.demo.annotated import write_scenes
from edje_qdrant.demo.joint import JointSettings, train_joint
from edje_qdrant.encoders import SiglipEncoder
from edje_qdrant.evaluation.ask_in_memory import text_to_image
from edje_qdrant.evaluation.bootstrap import difference, interval, resampled_means
from edje_qdrant.evaluation.gallery import build_gallery

SWEEP = (5, 10, 20, 50, 100)
TEACHER = "local"
PLAIN = JointSettings()
OBJECTIVES = PLAIN.objectives
VARIANTS = {
    "16 tokens": PLAIN,
    "4 tokens": replace(PLAIN, num_tokens=4),
    "8 tokens": replace(PLAIN, num_tokens=8),
    "32 tokens": replace(PLAIN, num_tokens=32),
    "local": replace(PLAIN, adapter="local"),
    "no masked words": replace(PLAIN, objectives=replace(OBJECTIVES, words=0.0), words_alone=0.0),
    "no text recovery": replace(PLAIN, objectives=replace(OBJECTIVES, recovery=0.0)),
    # Contradictions belong to the hard negatives, so this variant has neither.
    "random negatives alone": replace(PLAIN, random_pairs=2.0),
    "no contradictions": replace(PLAIN, contradictions=0),
    "distilled from local": replace(PLAIN, objectives=replace(OBJECTIVES, distillation=1.0)),
}
# At the published model's width, for a GPU: trained only if they are named.
WIDE = replace(PLAIN, num_tokens=64, width=384, layers=12, heads=12)
WIDE_VARIANTS = {
    "64 x 384, 12 layers": WIDE,
    "64 x 384, 6 layers": replace(WIDE, layers=6),
    "32 x 384, 12 layers": replace(WIDE, num_tokens=32),
    "16 x 384, 12 layers": replace(WIDE, num_tokens=16),
}
EVERY = {**VARIANTS, **WIDE_VARIANTS}


def main() -> None:
    """Train and measure the missing variants, and print the table."""
    options = _options()
    torch.set_float32_matmul_precision("high")
    device = torch.device(options.device)
    annotations = read_annotations(write_scenes(options.work / "held-out"))
    gallery = build_gallery(annotations)
    for name in options.variants or VARIANTS:
        key = (name, options.steps, options.seed)
        if key in {(run["variant"], run["steps"], run["seed"]) for run in _read(options.out)}:
            continue
        run = _train_and_measure(name, options, gallery, device)
        # Read again: another process may have written results since.
        _write(options.out, [*_read(options.out), run])
        print(_table(_read(options.out)), flush=True)
    print(_table(_read(options.out)))


def _train_and_measure(
    name: str, options: argparse.Namespace, gallery: Any, device: torch.device
) -> dict[str, Any]:
    bundled = EDJEModel.from_pretrained("demo", device=device, dtype=torch.float32)
    encoder = bundled.encoder
    assert isinstance(encoder, SiglipEncoder)
    settings, teacher = EVERY[name], None
    if settings.objectives.distillation:
        folder = _folder(options, TEACHER) / "model"
        if not folder.exists():
            raise SystemExit(f"the teacher is not trained yet; run the variant {TEACHER!r} first")
        teacher = EDJEModel.from_pretrained(folder, device=device, dtype=torch.float32)
        teacher.encoder = encoder
        teacher.joint_encoder.language_model.set_attn_implementation("eager")
    work = _folder(options, name)
    work.mkdir(parents=True, exist_ok=True)
    for shared in ("data", "vision"):
        (options.work / shared).mkdir(exist_ok=True)
        if not (work / shared).exists():
            (work / shared).symlink_to((options.work / shared).resolve())
    model, figures = train_joint(
        encoder, work, steps=options.steps, num_scenes=options.images, seed=options.seed,
        device=device, settings=settings, teacher=teacher,
    )  # fmt: skip
    model.save_pretrained(work / "model", dtype=torch.float16)
    model.eval()
    return {
        "variant": name,
        "steps": options.steps,
        "seed": options.seed,
        "tokens": model.config.num_tokens,
        "bytes_per_picture": model.config.num_tokens * model.config.token_dim * 2,
        "validation": {k: v for k, v in figures.items() if k != "seconds"},
        "seconds": round(figures["seconds"]),
        **_measure(model, gallery),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {device.type}",
    }


def _measure(model: EDJEModel, gallery: Any) -> dict[str, Any]:
    from PIL import Image

    images = [Image.open(path) for path in gallery.paths]
    rankings = text_to_image(gallery, model, model.encode_images(images), max(SWEEP))
    hits = {k: rankings.right_after(k)[:, 0].astype(float) for k in (0, *SWEEP)}
    means = resampled_means(hits[50][:, None], rankings.clusters)
    low, high = interval(means[:, 0])
    return {
        "first_stage": round(float(hits[0].mean()), 4),
        "R@1": {str(k): round(float(hits[k].mean()), 4) for k in SWEEP},
        "R@1 interval": [round(low, 4), round(high, 4)],
        "hits": "".join(str(int(h)) for h in hits[50]),  # by query, for paired differences
    }


def _table(runs: list[dict[str, Any]]) -> str:
    lines = [
        "| variant | bytes | R@1, 50 candidates | 95% | less the first row's | minutes |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    base = np.array([int(h) for h in runs[0]["hits"]], float) if runs else None
    for run in runs:
        own = np.array([int(h) for h in run["hits"]], float)
        assert base is not None
        found = _paired(own, base) if run is not runs[0] else "-"
        low, high = run["R@1 interval"]
        lines.append(
            f"| {run['variant']} | {run['bytes_per_picture']:,} | {run['R@1']['50']:.1%} | "
            f"{low:.1%} to {high:.1%} | {found} | {run['seconds'] / 60:.0f} |"
        )
    return "\n".join(lines)


def _paired(own: np.ndarray, base: np.ndarray) -> str:
    clusters = np.arange(len(own))
    means = resampled_means(np.stack([own, base], axis=1), clusters)
    found = difference(float(own.mean() - base.mean()), means[:, 0], means[:, 1])
    return f"{found.mean:+.1%} ({found.low:+.1%} to {found.high:+.1%})"


def _read(path: Path) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else []
    return sorted(runs, key=lambda run: [*EVERY].index(run["variant"]))


def _write(path: Path, runs: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"runs": runs}, indent=1) + "\n", encoding="utf-8")


def _folder(options: argparse.Namespace, name: str) -> Path:
    return Path(
        options.work
        / f"ablation-{options.steps}-{options.seed}"
        / name.replace(",", "").replace(" ", "-")
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "variants", nargs="*", help=f"of {', '.join(EVERY)}; by default all that are not 384 wide"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/demo"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/ablation.json"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--images", "--pictures", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    unknown = [name for name in options.variants if name not in EVERY]
    if unknown:
        parser.error(f"there is no variant {unknown[0]!r}; there are {', '.join(EVERY)}")
    return options


if __name__ == "__main__":
    main()
