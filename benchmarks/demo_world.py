"""Helpers shared by the benchmarks: drawn scenes with captions, an untrained model, conditions."""

from __future__ import annotations

import os
import platform
import string
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, SiglipConfig, SiglipModel

from edje_qdrant import EDJEModel, ImageCollection, __version__
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.run import scene_captions
from edje_qdrant.demo.scenes import draw_scenes
from edje_qdrant.encoders import SiglipEncoder
from edje_qdrant.encoders.siglip_pixels import SiglipPixels

BATCH = 50


def demo_collection(
    folder: Path, model: EDJEModel, images: int, **options: Any
) -> tuple[ImageCollection, list[str]]:
    """Create a collection of held-out scenes; return it and one caption for each scene."""
    scenes = list(draw_scenes("test", 0, images))
    collection = ImageCollection.create(folder, "images", model.contract(), **options)
    for start in range(0, images, BATCH):
        part = range(start, min(start + BATCH, images))
        ids = [f"00000000-0000-4000-8000-{number:012d}" for number in part]
        payloads = [
            {"path": f"/pictures/scene-{n:04d}.png", "width": 256, "height": 256} for n in part
        ]
        collection.add(ids, model.encode_images([draw(scenes[n]) for n in part]), payloads)
    collection.flush()
    collection.optimize()
    return collection, [caption.text for caption in scene_captions(scenes, 0)]


def untrained_model(*, text: dict[str, int] | None = None, **vision: int) -> EDJEModel:
    """Build a model with random weights, 64 x 384 tokens and a MiniLM-L12-sized joint encoder.

    Args:
        text: Arguments of SigLIP's text configuration; a single narrow layer by default.
        vision: Arguments of SigLIP's vision configuration.
    """
    letters = string.ascii_lowercase
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    tokenizer = BertTokenizer({piece: number for number, piece in enumerate(pieces)})
    layers = text or {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = {"vocab_size": 64, "projection_size": vision["hidden_size"], "bos_token_id": 2,
            "eos_token_id": 3, **layers}  # fmt: skip
    siglip = SiglipModel(SiglipConfig(text_config=text, vision_config={**vision}))
    size = {"height": vision["image_size"], "width": vision["image_size"]}
    processor = SiglipPixels(size=size)
    language_model = BertForMaskedLM(
        BertConfig(
            vocab_size=64, hidden_size=384, num_hidden_layers=12, num_attention_heads=12,
            intermediate_size=1536,
        )
    )  # fmt: skip
    encoder = SiglipEncoder(siglip, processor, tokenizer, name="untrained")
    return EDJEModel.build(encoder, language_model, tokenizer, num_tokens=64)


def conditions() -> dict[str, Any]:
    """Return the date, machine, load and versions of a benchmark run."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores, "
        f"{'CUDA' if torch.cuda.is_available() else 'no GPU'}",
        "load_average": round(os.getloadavg()[0], 1),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "edje-qdrant": __version__,
            **{name: version(name) for name in ("torch", "numpy")},
        },
    }
