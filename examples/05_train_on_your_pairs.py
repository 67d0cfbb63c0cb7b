"""Fine-tune the reranker on your own images and captions, and calibrate it.

    python examples/05_train_on_your_pairs.py [TRAIN.jsonl VALIDATION.jsonl] [OUT] [STEPS]

Without pairs, drawn scenes with their captions are used, for a few steps that only show how it
works. On the command line: edje-qdrant train --recipe examples/recipes/finetuning-coco.toml ...
"""

from __future__ import annotations

import sys
from pathlib import Path

from edje_qdrant.data.annotations import read_annotations
from edje_qdrant.demo.annotated import write_scenes
from edje_qdrant.evaluation.calibrate import calibrate
from edje_qdrant.model import EDJEModel
from edje_qdrant.training.recipe import read_recipe
from edje_qdrant.training.run import train

RECIPE = """
[model]
start_from = "demo"

[[data.train]]
path = "{train}"

[data.validation]
path = "{validation}"

[objectives]
matching = 1.0
words = 0.0
recovery = 0.0

[optimisation]
steps = {steps}
batch_size = 8
peak_lr = 1e-5
warmup_steps = 1
validate_every = {steps}
"""


def main(
    pairs: str | None = None,
    held_out: str | None = None,
    out: str = "example-model",
    steps: str = "4",
) -> None:
    """Train, calibrate, and leave a folder that --model takes."""
    train_on = Path(pairs) if pairs else write_scenes("example-scenes", count=60)
    validation = Path(held_out) if held_out else write_scenes("example-held-out", count=40, seed=2)
    recipe = Path(f"{out}.toml")
    recipe.write_text(
        RECIPE.format(train=train_on.absolute(), validation=validation.absolute(), steps=steps)
    )
    train(read_recipe(recipe), Path(out))
    # On images the model was not trained on, as it is surer of those than of others.
    model = EDJEModel.from_pretrained(Path(out) / "model")
    report = calibrate(model, read_annotations(validation), data=validation.name, num_candidates=20)
    report.calibration.save(Path(out) / "model")
    print(report.text())
    print(f"use it with: edje-qdrant ingest PICTURES --index FOLDER --model {out}/model")


if __name__ == "__main__":
    main(*sys.argv[1:])
