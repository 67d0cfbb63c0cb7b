"""Evaluate a model on annotated images: first stage and reranked, with intervals.

    python examples/06_evaluate.py [ANNOTATIONS] [MODEL]

ANNOTATIONS: JSONL of {"image", "caption"}, or a Karpathy file; sixty drawn scenes by default.
"""

from __future__ import annotations

import sys
from pathlib import Path

from edje_qdrant import EDJEModel
from edje_qdrant.data.annotations import read_annotations
from edje_qdrant.demo.annotated import write_scenes
from edje_qdrant.evaluation.run import Contender, Settings, evaluate


def main(annotations: str | None = None, model: str = "demo") -> None:
    """Evaluate, print the table, and say where plots and the worst queries are."""
    path = Path(annotations) if annotations else write_scenes("example-scenes", count=60)
    report = evaluate(
        read_annotations(path),
        [Contender(model, EDJEModel.from_pretrained(model))],
        "example-eval",
        Settings(direction="t2i", num_candidates=(5, 20)),
        data=path.name,
    )
    print(report.text())


if __name__ == "__main__":
    main(*sys.argv[1:])
