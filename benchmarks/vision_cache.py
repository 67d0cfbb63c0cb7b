"""Compare training steps that read and encode their images with steps that use the vision cache.

    python benchmarks/vision_cache.py [--size base] [--images 64] [--steps 4]

A SigLIP and a MiniLM of the published shapes with random weights (speed does not depend on them),
64 tokens, drawn scenes saved as PNG. Prints one JSON object with images per second and the ratio.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM, SiglipConfig, SiglipModel

from edje_qdrant.data.pairs import open_pairs
from edje_qdrant.demo.annotated import write_scenes
from edje_qdrant.demo.tower import scene_tokenizer
from edje_qdrant.encoders import SiglipEncoder
from edje_qdrant.encoders.siglip_pixels import SiglipPixels
from edje_qdrant.model import EDJEModel
from edje_qdrant.training.batches import Batches
from edje_qdrant.training.loop import accelerator_for, autocast
from edje_qdrant.training.mixture import Mixture
from edje_qdrant.training.objectives import Objectives, TrainedParts
from edje_qdrant.training.recipe import Recipe
from edje_qdrant.training.vision import LiveVision, VisionSource
from edje_qdrant.training.vision_cache import CachedVision

SIZES = {"base": (768, 12, 12, 224), "large": (1024, 24, 16, 384)}
BATCH = 16


def main() -> None:
    """Measure both kinds of steps and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--images", "--pictures", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device")
    options = parser.parse_args()
    accelerator = accelerator_for(options.device)
    model = _model(options.size).to(accelerator.device)
    parts = TrainedParts(model, Objectives())
    optimizer = torch.optim.AdamW(parts.parameters(), lr=1e-4)
    with tempfile.TemporaryDirectory() as folder:
        pairs = open_pairs(write_scenes(Path(folder), count=options.images, progress=False))
        recipe = Recipe.model_validate(
            {
                "model": {"encoder": "random"},
                "data": {"train": [{"path": "-"}], "validation": {"path": "-"}},
                "optimisation": {"steps": options.steps, "batch_size": BATCH},
            }
        )
        live = LiveVision(model.encoder, [pairs], device=accelerator.device)
        began = time.perf_counter()
        cached = CachedVision(
            model.encoder, [pairs], Path(folder) / "cache", device=accelerator.device,
            progress=False,
        )  # fmt: skip
        encoding = time.perf_counter() - began

        def seconds(vision: VisionSource) -> float:
            mixture = Mixture([len(pairs)], [1.0], seed=0)
            batches = Batches(
                model, [pairs], mixture, vision, recipe, options.steps + 1, accelerator
            )
            taken = []
            for number in range(options.steps + 1):
                began = time.perf_counter()
                with autocast(accelerator.device):
                    losses = parts(batches(number))
                sum(v for k, v in losses.items() if k[0] != "_").backward()
                optimizer.step()
                optimizer.zero_grad()
                if accelerator.device.type == "cuda":
                    torch.cuda.synchronize()
                taken.append(time.perf_counter() - began)
            return float(np.median(taken[1:]))

        steps = {"live": seconds(live), "cached": seconds(cached)}
        live.close()
    report = {
        "encoder": f"SigLIP {options.size}, {SIZES[options.size][3]} px",
        "pictures_per_second": {name: round(BATCH / s, 2) for name, s in steps.items()},
        "ratio": round(steps["live"] / steps["cached"], 1),
        "encoding_once_pictures_per_second": round(options.images / encoding, 2),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, "
        f"{accelerator.device.type}",
    }
    print(json.dumps(report, indent=2))


def _model(size: str) -> EDJEModel:
    width, layers, heads, side = SIZES[size]
    tokenizer = scene_tokenizer()
    shape = {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }  # fmt: skip
    text = {**shape, "num_hidden_layers": 2, "vocab_size": len(tokenizer), "projection_size": width}
    text |= {"max_position_embeddings": 64, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    siglip = SiglipModel(
        SiglipConfig(text_config=text, vision_config={**shape, "image_size": side})
    )
    processor = SiglipPixels(size={"height": side, "width": side})
    bert = BertConfig(
        vocab_size=30522, hidden_size=384, num_hidden_layers=12, num_attention_heads=12,
        intermediate_size=1536,
    )  # fmt: skip
    encoder = SiglipEncoder(siglip.eval(), processor, tokenizer, name="random")
    model = EDJEModel.build(encoder, BertForMaskedLM(bert), scene_tokenizer(), num_tokens=64)
    return model.train()


if __name__ == "__main__":
    main()
