"""Give a trained model's joint encoder twice its layers, to train it on.

    python examples/emoji/stack_layers.py runs/emoji-wide-continued runs/stacked

The layers are put on top of themselves in the same order, as in progressive stacking (Gong et al.,
"Efficient Training of BERT by Progressively Stacking", 2019). The result has to be trained before
it is of use. `OUT/recipe.json` tells how it was trained so far.
"""

from __future__ import annotations

import argparse
import copy
import shutil
from pathlib import Path

from torch import nn

from edje_qdrant import EDJEModel


def main() -> None:
    """Load a model, repeat its layers, and save it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a training, with model/ in it")
    parser.add_argument("out", type=Path, help="folder for model/ and recipe.json")
    options = parser.parse_args()
    model = EDJEModel.from_pretrained(options.run / "model", device="cpu", dtype="float32")
    model.calibration = None  # its logits become other ones
    language_model = model.joint_encoder.language_model
    layers = language_model.bert.encoder.layer
    language_model.bert.encoder.layer = nn.ModuleList([*layers, *copy.deepcopy(layers)])
    language_model.config.num_hidden_layers = len(language_model.bert.encoder.layer)
    model.save_pretrained(options.out / "model")
    shutil.copy(options.run / "recipe.json", options.out)
    print(f"{len(layers)} layers are now {language_model.config.num_hidden_layers}: {options.out}")


if __name__ == "__main__":
    main()
