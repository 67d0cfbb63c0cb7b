"""Run a model on a public benchmark of image search, with mteb.

    python benchmarks/public.py flickr30k --model ./edje [--stages first] [--candidates 100]
        [--subsets en de] [--device cuda] [--precision float32] [--out flickr30k.json]

flickr30k        Flickr30kT2IRetrieval: 1,000 images, five captions each.
coco             MSCOCOT2IRetrieval: 5,000 images, five captions each.
xm3600           XM3600T2IRetrieval: 3,600 images in 36 languages; --subsets chooses some.
inquire-rerank   INQUIRE-Rerank: 100 candidates for each question about nature.

Needs the extra mteb, and the network for the data, unless the hub's cache has them. `--stages both`
reranks the first stage's candidates, or those that the benchmark names; `--stages first` is the
first stage alone. mteb's own cache of results is not used.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mteb

from edje_qdrant import EDJEModel
from edje_qdrant.integrations.mteb import EDJEEncoder, EDJETwoStage, InquireRerank
from edje_qdrant.model.inference.precision import PRECISIONS

TASKS: dict[str, Callable[..., Any]] = {
    "flickr30k": lambda **given: mteb.get_task("Flickr30kT2IRetrieval", **given),
    "coco": lambda **given: mteb.get_task("MSCOCOT2IRetrieval", **given),
    "xm3600": lambda **given: mteb.get_task("XM3600T2IRetrieval", **given),
    "inquire-rerank": InquireRerank,
}
SHOWN = ("main_score", "ndcg_at_10", "map_at_100", "hit_rate_at_1", "hit_rate_at_5", "mrr_at_10")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parsed = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parsed.add_argument("benchmark", choices=TASKS)
    parsed.add_argument("--model", required=True, help="a folder, a hub id or demo")
    parsed.add_argument("--stages", choices=("first", "both"), default="both")
    parsed.add_argument("--candidates", type=int, default=100)
    parsed.add_argument("--subsets", nargs="+", help="languages of xm3600")
    parsed.add_argument("--device")
    parsed.add_argument("--precision", choices=PRECISIONS, default="auto")
    parsed.add_argument("--batch-size", type=int, default=32)
    parsed.add_argument("--out", type=Path)
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one benchmark and print its figures."""
    given = parser().parse_args(arguments)
    if given.subsets and given.benchmark != "xm3600":
        parser().error("--subsets is for xm3600")
    task = TASKS[given.benchmark](**({"hf_subsets": given.subsets} if given.subsets else {}))
    model = EDJEModel.from_pretrained(given.model, device=given.device)
    runner: Any = EDJEEncoder(model)
    if given.stages == "both":
        runner = EDJETwoStage(model, num_candidates=given.candidates, precision=given.precision)
    results = mteb.evaluate(
        runner, task, cache=None, encode_kwargs={"batch_size": given.batch_size}
    )
    report = {
        "benchmark": task.metadata.name,
        "model": given.model,
        "stages": given.stages,
        "candidates": given.candidates if given.stages == "both" else None,
        "mteb": mteb.__version__,
        "scores": results[0].scores,
    }
    for split, subsets in results[0].scores.items():
        for scores in subsets:
            shown = ", ".join(f"{name} {scores[name]:.4f}" for name in SHOWN if name in scores)
            print(f"{task.metadata.name} {split} {scores.get('hf_subset', '')}: {shown}")
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
