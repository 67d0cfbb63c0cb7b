"""Train the bundled model from nothing: draw, train the tower, train the joint encoder, save."""

from __future__ import annotations

import json
import platform
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from transformers import BertTokenizer, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from edje_qdrant.demo.joint import train_joint
from edje_qdrant.demo.tower import SIDE, train_tower
from edje_qdrant.encoders import SiglipEncoder
from edje_qdrant.errors import ConfigError
from edje_qdrant.version import __version__

__all__ = ["scene_encoder", "train_demo"]

TOWER_STEPS = 3000
JOINT_STEPS = 5000
PICTURES = 100_000


def scene_encoder(siglip: SiglipModel, tokenizer: BertTokenizer) -> SiglipEncoder:
    """Wrap a trained tower with the image processor it was trained behind."""
    processor = SiglipImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return SiglipEncoder(siglip, processor, tokenizer, name="edje-scenes-siglip")


def train_demo(
    out: Path,
    work: Path,
    *,
    scale: float = 1.0,
    seed: int = 1,
    device: str | None = None,
) -> dict[str, Any]:
    """Train the demo's model and save it; a run that was stopped goes on where it was.

    Args:
        out: Folder the model is saved to, in float16.
        work: Drawn scenes (3 GB), vision tokens (3 GB), logs and checkpoints.
        scale: Multiplies steps and pictures; 1 is the bundled model's.
        seed: Of weights, scenes, captions and batches.
        device: CUDA where there is one, by default.

    Returns:
        What was trained, how long it took and the validation's figures; also saved as
        `training.json` beside the model.

    Raises:
        ConfigError: The scale is not positive.
        EdjeError: The loss is not finite, or the folder holds another run's state.
    """
    if not 0 < scale <= 100:
        raise ConfigError(f"scale must be above 0 and at most 100, got {scale}")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    pictures = max(256, round(PICTURES * scale))
    tower_steps, joint_steps = (
        max(4, round(steps * scale)) for steps in (TOWER_STEPS, JOINT_STEPS)
    )
    started = time.perf_counter()
    siglip, tokenizer, tower = train_tower(
        work, steps=tower_steps, pictures=pictures, seed=seed, device=place
    )
    encoder = scene_encoder(siglip, tokenizer)
    model, joint = train_joint(
        encoder,
        work,
        steps=joint_steps,
        pictures=pictures,
        seed=seed,
        device=place,
    )
    stages = {"tower": tower, "joint": joint}
    report: dict[str, Any] = {
        "recipe": "demo",
        "seed": seed,
        "scale": scale,
        "pictures": pictures,
        **stages,
        "seconds": round(sum(figures["seconds"] for figures in stages.values())),
        "seconds_of_this_run": round(time.perf_counter() - started),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {place.type}",
        "versions": {"edje_qdrant": __version__, "torch": torch.__version__},
    }
    model.to("cpu")
    model.save_pretrained(out, dtype=torch.float16)
    (out / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report
