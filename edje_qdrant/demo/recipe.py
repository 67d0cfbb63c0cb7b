"""Training of the bundled model: draw scenes, train tower and joint encoder, save."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from transformers import BertTokenizer, SiglipModel

from edje_qdrant.demo.joint import JointSettings, train_joint
from edje_qdrant.demo.tower import SIDE, train_tower
from edje_qdrant.encoders import SiglipEncoder
from edje_qdrant.encoders.siglip_pixels import SiglipPixels
from edje_qdrant.model.config import AdapterKind
from edje_qdrant.training.loop import require_accelerate
from edje_qdrant.training.recipe import Section, WeightsSection, read_settings, validated
from edje_qdrant.version import __version__

__all__ = ["DEMO_RECIPE", "DemoRecipe", "read_demo_recipe", "scene_encoder", "train_demo"]

#: The bundled model's recipe.
DEMO_RECIPE = Path(__file__).with_name("recipe.toml")


class ScenesSection(Section):
    """Number of scenes, and length of the tower's training.

    Attributes:
        pictures: Number of training scenes.
        tower_steps: Optimiser steps of 128 images.
    """

    pictures: int = Field(ge=256)
    tower_steps: int = Field(ge=1)


class JointSection(Section):
    """The joint encoder's training, as in `JointSettings`.

    Attributes:
        steps: Optimiser steps of 64 images.
        adapter: `compressed` or `local`.
        num_tokens: Tokens per image of the compressed adapter.
        words_alone: Share of the steps before matching begins.
        random_pairs: Share of the steps with random negatives, before hard ones begin.
        contradictions: Contradictions per pair.
        objectives: Weights of the objectives.
    """

    steps: int = Field(ge=1)
    adapter: AdapterKind
    num_tokens: int = Field(ge=1)
    words_alone: float = Field(ge=0, le=1)
    random_pairs: float = Field(ge=0, le=1)
    contradictions: int = Field(ge=0)
    objectives: WeightsSection

    def settings(self) -> JointSettings:
        """Return the settings for `train_joint`."""
        apart = {"steps", "objectives"}
        return JointSettings(
            objectives=self.objectives.objectives(), **self.model_dump(exclude=apart)
        )


class RelationsSection(Section):
    """The last training: joint encoder and adapter go on with hard negatives, and learn places.

    Attributes:
        steps: Optimiser steps of 64 images.
        places: Weight of the objective that predicts where the mentioned objects lie.
        brief_texts: Share of texts without a relation: phrases and single words.
    """

    steps: int = Field(ge=1)
    places: float = Field(ge=0)
    brief_texts: float = Field(ge=0, le=1)

    def settings(self, joint: JointSettings) -> JointSettings:
        """Return the settings for `train_joint`, after a training with `joint`."""
        return replace(
            joint, places=self.places, brief_texts=self.brief_texts, words_alone=0.0,
            random_pairs=0.0,
        )  # fmt: skip


class DemoRecipe(Section):
    """All settings of the demo model's training."""

    seed: int = Field(ge=0)
    scenes: ScenesSection
    joint: JointSection
    relations: RelationsSection


def read_demo_recipe(
    path: Path = DEMO_RECIPE, changes: Mapping[str, Any] | None = None
) -> DemoRecipe:
    """Read a recipe with a `[scenes]` section.

    Raises:
        ConfigError: The file cannot be read, or a setting is missing, unknown or invalid.
    """
    return validated(DemoRecipe, read_settings(path, changes), path)


def scene_encoder(siglip: SiglipModel, tokenizer: BertTokenizer) -> SiglipEncoder:
    """Return the encoder of a trained tower, with the image processing of its training."""
    processor = SiglipPixels(size={"height": SIDE, "width": SIDE})
    return SiglipEncoder(siglip, processor, tokenizer, name="edje-scenes-siglip")


def train_demo(
    out: Path,
    work: Path,
    recipe: DemoRecipe | None = None,
    *,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train the demo's model and save it; a stopped run resumes.

    Args:
        out: Folder for the model, in float16.
        work: Folder for drawn scenes (3 GB), vision tokens (3 GB), logs and checkpoints.
        recipe: The bundled model's by default.
        device: Defaults to CUDA if available.
        progress: Show bars on stderr.

    Returns:
        Settings, times and validation figures; also saved as `training.json` beside the model.

    Raises:
        MissingExtraError: The extra `train` is not installed.
        EdjeError: The loss is not finite, or the folder holds another run's state.
    """
    require_accelerate()
    recipe = recipe or read_demo_recipe()
    seed, num_scenes = recipe.seed, recipe.scenes.pictures
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    started = time.perf_counter()
    siglip, tokenizer, tower = train_tower(
        work,
        steps=recipe.scenes.tower_steps,
        num_scenes=num_scenes,
        seed=seed,
        device=place,
        progress=progress,
    )
    encoder = scene_encoder(siglip, tokenizer)
    settings = recipe.joint.settings()
    common: dict[str, Any] = {
        "num_scenes": num_scenes, "seed": seed, "device": place, "progress": progress,
    }  # fmt: skip
    model, joint = train_joint(encoder, work, steps=recipe.joint.steps, settings=settings, **common)
    model, relations = train_joint(
        encoder, work, steps=recipe.relations.steps, settings=recipe.relations.settings(settings),
        start=model, name="relations", **common,
    )  # fmt: skip
    stages = {"tower": tower, "joint": joint, "relations": relations}
    report: dict[str, Any] = {
        "recipe": recipe.model_dump(),
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
