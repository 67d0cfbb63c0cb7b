"""Measure quality and cost of search options on drawn scenes.

    python benchmarks/search_quality.py --out docs/results

The model was calibrated on scenes with another seed than those used here. Writes `search.json` and
`search.png` and prints a table for each part:

fusion     R@1 of each way to combine the scores of both stages, on two sets of scenes: a choice
           made on one set must hold on the other.
cutoff     True accepts against false accepts, by each stage's score. Queries without a right image
           are the same queries, after all images that fit their caption are removed.
adaptive   Pairs saved against R@1 lost.
budget     R@1 of the retriever with decreasing budgets, given as shares of the time of a whole
           search in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edje_qdrant import EDJEModel, ImageCollection, TwoStageRetriever
from edje_qdrant.data.annotations import read_annotations
from edje_qdrant.demo.annotated import CALIBRATION_SEED, scene_matches, write_scenes
from edje_qdrant.evaluation.ask_in_memory import read_out, text_to_image
from edje_qdrant.evaluation.bootstrap import difference, resampled_means
from edje_qdrant.evaluation.calibrate import accepts, savings, with_matches
from edje_qdrant.evaluation.gallery import Gallery, build_gallery
from edje_qdrant.evaluation.rankings import Rankings
from edje_qdrant.evaluation.run import ingest_gallery
from edje_qdrant.model.calibration import Calibration
from edje_qdrant.search.fusion import blend, reciprocal_ranks

CANDIDATES = 50
WEIGHTS = (0.05, 0.1, 0.2, 0.3, 0.5)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2)


def main() -> None:
    """Measure all parts, and write and print the results."""
    options = _options()
    model = EDJEModel.from_pretrained("demo")
    if model.calibration is None:
        raise SystemExit("the bundled model has no calibration; run `edje-qdrant calibrate` first")
    with _ranked(model, options.work / "calibration", CALIBRATION_SEED) as (_, _, other):
        pass
    with _ranked(model, options.work / "test", 1) as (collection, gallery, own):
        fitting = with_matches(own, scene_matches(options.work / "test"))
        result = {
            "scenes": len(gallery),
            "candidates": CANDIDATES,
            "queries that fit other images too": float((fitting.right.sum(axis=1) > 1).mean()),
            "fusion": _fusions(own, other),
            "cutoff": _cutoffs(fitting, model.calibration),
            "adaptive": [_adaptive(own, model.calibration, k) for k in (1, 5, 10)],
            "budget": _budgets(TwoStageRetriever(collection, model), gallery, options.queries),
            "date": datetime.now(timezone.utc).date().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
            f"{torch.get_num_threads()} threads, {model.device.type}",
        }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "search.json").write_text(json.dumps(result, indent=1) + "\n")
    _draw(result, options.out / "search.png")
    print(table(result))


@contextmanager
def _ranked(
    model: EDJEModel, folder: Path, seed: int
) -> Iterator[tuple[ImageCollection, Gallery, Rankings]]:
    """Draw and ingest scenes unless an earlier run has, and rank them for their captions."""
    gallery = build_gallery(read_annotations(write_scenes(folder, seed=seed)))
    there = (folder / "index" / "images").exists()
    with (
        ImageCollection.open(folder / "index", "images")
        if there
        else ImageCollection.create(folder / "index", "images", model.contract())
    ) as collection:
        ingest_gallery(gallery, collection, model)
        images = read_out(gallery, collection)
        yield collection, gallery, text_to_image(gallery, model, images, CANDIDATES)


def _fusions(rankings: Rankings, other: Rankings) -> list[dict[str, Any]]:
    """Return R@1 of each fusion, with its paired difference to the joint encoder alone."""
    base = _right(rankings, rankings.joint)
    others = dict(_ways(other))
    rows = []
    for name, scores in _ways(rankings):
        own = _right(rankings, scores)
        means = resampled_means(np.stack([own, base], axis=1), rankings.clusters)
        gap = difference(float(own.mean() - base.mean()), means[:, 0], means[:, 1])
        rows.append(
            {
                "way": name,
                "R@1": float(own.mean()),
                "less rerank": [gap.mean, gap.low, gap.high],
                "R@1 of other scenes": float(_right(other, others[name]).mean()),
            }
        )
    return rows


def _ways(rankings: Rankings) -> list[tuple[str, NDArray[Any]]]:
    """Return names and `(q, depth)` scores of the ways to rank."""
    ways: list[tuple[str, NDArray[Any]]] = [
        ("first stage", rankings.first),
        ("rerank", rankings.joint),
    ]
    for pair in ((1, 1), (1, 3)):
        fused = _each(rankings, lambda c, j, pair=pair: reciprocal_ranks(c, j, pair))
        ways.append((f"rrf {pair[0]}:{pair[1]}", fused))
    for weight in WEIGHTS:
        pair = (weight, 1 - weight)
        fused = _each(rankings, lambda c, j, pair=pair: blend(c, j, pair))
        ways.append((f"blend {weight:g}:{1 - weight:g}", fused))
    return ways


def _each(rankings: Rankings, fuse: Any) -> NDArray[np.float64]:
    rows = zip(rankings.first, rankings.joint, strict=True)
    return np.stack([fuse(cosines, logits) for cosines, logits in rows])


def _right(rankings: Rankings, scores: NDArray[Any]) -> NDArray[np.float64]:
    rows = np.arange(len(rankings))
    best = np.argsort(-scores, axis=1, kind="stable")[:, 0]
    return rankings.right[rows, best].astype(np.float64)


def _cutoffs(rankings: Rankings, calibration: Calibration) -> dict[str, Any]:
    logits = rankings.joint
    joint = accepts(rankings, logits, logits >= calibration.cutoff)
    probabilities = calibration.probability(logits)
    return {
        "cutoff": calibration.cutoff,
        "true at cutoff": joint.true,
        "false at cutoff": joint.false,
        "brier": float(((probabilities - rankings.right) ** 2).mean()),
        "brier of the share": float(rankings.right.mean() * (1 - rankings.right.mean())),
        "bins": _bins(probabilities, rankings.right),
        "joint encoder": joint.true_at,
        "first stage": accepts(rankings, rankings.first).true_at,
    }


def _bins(probabilities: NDArray[np.float64], right: NDArray[np.bool_]) -> list[list[float]]:
    """Return lower end, share of right pairs, mean probability and number of pairs by tenth."""
    rows = []
    for low in np.arange(10) / 10:
        inside = (probabilities >= low) & (probabilities < low + 0.1 + (low == 0.9))
        if inside.any():
            rows.append(
                [
                    float(low),
                    float(right[inside].mean()),
                    float(probabilities[inside].mean()),
                    int(inside.sum()),
                ]
            )
    return rows


def _adaptive(rankings: Rankings, calibration: Calibration, top_k: int) -> dict[str, Any]:
    stops, found = savings(calibration, rankings, top_k=top_k)
    rows = np.arange(len(rankings))
    whole = _right(rankings, rankings.joint)
    return {
        "top_k": top_k,
        "pairs saved": float(1 - stops.mean() / rankings.depth),
        "R@1": float(rankings.right[rows, found].mean()),
        "R@1 lost": float(whole.mean() - rankings.right[rows, found].mean()),
    }


def _budgets(retriever: TwoStageRetriever, gallery: Gallery, queries: int) -> dict[str, Any]:
    texts = gallery.captions[:queries]
    owners = [gallery.image_ids[row] for row in gallery.owner[:queries]]

    def ask(budget: float | None) -> dict[str, Any]:
        results = [
            retriever.search(text, num_candidates=CANDIDATES, budget_ms=budget) for text in texts
        ]
        return {
            "milliseconds": statistics.median(result.timings.total for result in results),
            "slowest": max(result.timings.total for result in results),
            "scored": statistics.mean(result.scored / result.candidates for result in results),
            "degraded": statistics.mean(result.degraded for result in results),
            "R@1": statistics.mean(
                result[0].image_id == owner for result, owner in zip(results, owners, strict=True)
            ),
        }

    ask(None)  # warm-up
    whole = ask(None)
    rows = [
        {"share": share, "budget": share * whole["milliseconds"]}
        | ask(share * whole["milliseconds"])
        for share in SHARES
    ]
    return {"queries": len(texts), "whole": whole, "rows": rows}


def table(result: dict[str, Any]) -> str:
    """Return Markdown tables of all parts."""
    lines = [
        "| ranked by | R@1 | less the joint encoder alone (95%) | R@1 of other scenes |",
        "| --- | --- | --- | --- |",
    ]
    for row in result["fusion"]:
        mean, low, high = row["less rerank"]
        gap = "-" if row["way"] == "rerank" else f"{mean:+.1%} ({low:+.1%} to {high:+.1%})"
        other = row["R@1 of other scenes"]
        lines.append(f"| {row['way']} | {row['R@1']:.1%} | {gap} | {other:.1%} |")
    cutoff = result["cutoff"]
    shares = [*cutoff["joint encoder"]]
    lines += [
        "",
        "| right answers accepted at false accepts of | "
        + " | ".join(f"{float(share):.0%}" for share in shares)
        + " |",
        "| --- |" + " --- |" * len(shares),
    ]
    for name in ("joint encoder", "first stage"):
        values = " | ".join(f"{cutoff[name][share]:.1%}" for share in shares)
        lines.append(f"| {name} | {values} |")
    lines += [
        "",
        "| `adaptive=True`, `top_k` | pairs saved | R@1 | R@1 lost |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['top_k']} | {row['pairs saved']:.1%} | {row['R@1']:.1%} | {row['R@1 lost']:.1%} |"
        for row in result["adaptive"]
    ]
    budget = result["budget"]
    lines += [
        "",
        "| budget, of a whole search's time | candidates scored | time taken | R@1 |",
        "| --- | --- | --- | --- |",
    ]
    whole = budget["whole"]
    for row in budget["rows"]:
        taken = row["milliseconds"] / whole["milliseconds"]
        lines.append(
            f"| {row['share']:.0%} | {row['scored']:.0%} | {taken:.0%} | {row['R@1']:.1%} |"
        )
    lines.append(f"| none | 100% | 100% | {whole['R@1']:.1%} |")
    return "\n".join(lines)


def _draw(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    budget = result["budget"]
    rows = budget["rows"]
    left.plot([r["share"] for r in rows], [r["R@1"] for r in rows], "o-", label="R@1")
    left.plot([r["share"] for r in rows], [r["scored"] for r in rows], "s--", color="0.6",
              label="candidates scored")  # fmt: skip
    left.axhline(budget["whole"]["R@1"], color="tab:blue", lw=0.8, ls=":")
    left.set(xlabel="budget, of a whole search's time", ylim=(0, 1), title="budget_ms")
    left.legend(frameon=False)
    cutoff = result["cutoff"]
    for name, marker in (("joint encoder", "o-"), ("first stage", "s--")):
        shares = [float(share) for share in cutoff[name]]
        middle.plot(shares, [*cutoff[name].values()], marker, label=name)
    middle.plot(cutoff["false at cutoff"], cutoff["true at cutoff"], "k*", ms=11,
                label='min_score="auto"')  # fmt: skip
    middle.set(xlabel="queries without a right image accepted", ylim=(0, 1),
               ylabel="right answers accepted", title="telling that nothing fits")  # fmt: skip
    middle.legend(frameon=False)
    bins = cutoff["bins"]
    right.plot([0, 1], [0, 1], color="0.7", lw=0.8)
    right.plot([b[2] for b in bins], [b[1] for b in bins], "o-")
    right.set(xlabel="hit.probability", ylabel="share that is right", title="calibration",
              xlim=(0, 1), ylim=(0, 1))  # fmt: skip
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/search"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--queries", type=int, default=300, help="queries of the part `budget`")
    return parser.parse_args()


if __name__ == "__main__":
    main()
