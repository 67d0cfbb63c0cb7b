"""What a training run is told: a TOML or JSON file, checked whole before anything is loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edje_qdrant.errors import ConfigError
from edje_qdrant.training.objectives import Objectives
from edje_qdrant.training.schedule import LoopConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "DataSection",
    "ModelSection",
    "ObjectivesSection",
    "OptimisationSection",
    "Pairs",
    "Recipe",
    "Section",
    "WeightsSection",
    "read_recipe",
    "read_settings",
    "validated",
]

T = TypeVar("T", bound=BaseModel)


class Section(BaseModel):
    """Refuse settings it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    """Say what is trained: a new model, or one that goes on.

    Attributes:
        start_from: An EDJE model, as `EDJEModel.from_pretrained` takes it, to go on with. Without
            one a new model is built of the rest.
        encoder: Folder or hub id of the SigLIP, or `open_clip:<model>@<weights>`.
        language_model: Folder or hub id of a BERT with its masked-word head.
        adapter: `compressed` or `local`.
        num_tokens: Of the compressed adapter.
        adapter_hidden_size: Width of the adapter's MLP.
        joint_encoder_from: An EDJE model, a trained local one say, whose joint encoder the new
            model begins with.
        look_at_regions: Begin with each query of a compressed adapter looking at a region of its
            own, instead of evenly at the whole image.
        freeze_language_model: Train adapter and heads alone.
    """

    start_from: str | None = None
    encoder: str | None = None
    language_model: str = "microsoft/MiniLM-L12-H384-uncased"
    adapter: Literal["compressed", "local"] = "compressed"
    num_tokens: int = Field(64, ge=1)
    adapter_hidden_size: int = Field(8192, ge=1)
    joint_encoder_from: str | None = None
    look_at_regions: bool = True
    freeze_language_model: bool = False

    @model_validator(mode="after")
    def _one_beginning(self) -> ModelSection:
        if (self.start_from is None) == (self.encoder is None):
            raise ValueError(
                "name start_from (a model to go on with) or encoder (for a new one), not both"
            )
        return self


class Pairs(Section):
    """Name a file of images and captions.

    Attributes:
        path: `.json` or `.jsonl` annotations, Karpathy's files, WebDataset shards
            (`cc3m-{00000..00331}.tar`), or a folder that `datasets` saved.
        images: Folder that relative image paths start from.
        split: Of a Karpathy file or a saved data set.
        weight: How often an epoch passes through the file.
    """

    path: str
    images: str | None = None
    split: str | None = None
    weight: float = Field(1.0, gt=0)


class DataSection(Section):
    """Say what is trained on.

    Attributes:
        train: One file or more.
        validation: Picks the weights; never trained on.
        validation_pictures: At most so many of it.
        num_candidates: Images reranked a validation query.
        cache_vision: Folder for the encoder's output: each image is encoded once, and never
            augmented. Without one, images are read and encoded each time they come up.
        augment: Crop images at random where they are not cached.
        workers: Threads that read images.
    """

    train: list[Pairs] = Field(min_length=1)
    validation: Pairs
    validation_pictures: int = Field(1000, ge=2)
    num_candidates: int = Field(10, ge=2)
    cache_vision: str | None = None
    augment: bool = True
    workers: int = Field(4, ge=1)


class WeightsSection(Section):
    """Weigh the objectives, as `Objectives`.

    Attributes:
        matching: Weight of image-text matching.
        words: Of masked words.
        recovery: Of text recovery.
        distillation: Of the teacher's scores.
        num_negatives: Wrong images, and as many wrong captions, for each pair.
        masked_share: Of a caption's word pieces.
    """

    matching: float = 1.0
    words: float = 1.0
    recovery: float = 1.0
    distillation: float = 0.0
    num_negatives: int = 1
    masked_share: float = 0.5

    @model_validator(mode="after")
    def _sensible(self) -> WeightsSection:
        self.objectives()
        return self

    def objectives(self) -> Objectives:
        """Return what `TrainedParts` takes."""
        return Objectives(**{name: getattr(self, name) for name in WeightsSection.model_fields})


class ObjectivesSection(WeightsSection):
    """Weigh the objectives, and say when matching begins.

    Attributes:
        teacher: An EDJE model on the same encoder, the local one say.
        matching_from: Share of the steps before which nothing is matched.
        hard_from: Share of the steps before which negatives are drawn at random; 1 is always.
    """

    teacher: str | None = None
    matching_from: float = Field(0.0, ge=0, le=1)
    hard_from: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _taught(self) -> ObjectivesSection:
        if bool(self.distillation) != (self.teacher is not None):
            raise ValueError("distillation needs a teacher, and a teacher a weight above 0")
        return self


class OptimisationSection(Section):
    """Say how long and how fast, as `LoopConfig`.

    Attributes:
        steps: Optimiser steps; or give `epochs`.
        epochs: Passes through the data.
        batch_size: Pairs a process and batch; negatives come from all processes' batches.
        accumulate: Batches a step.
        peak_lr: Learning rate after warm-up.
        first_lr: Where the warm-up begins.
        final_lr: The rate never falls below it.
        warmup_steps: Of linear warm-up.
        schedule: `epochs` (times `decay` after each, as the paper) or `cosine`.
        decay: For `epochs`.
        weight_decay: AdamW's.
        clip_norm: Largest norm of the gradient.
        validate_every: Steps between validations and checkpoints.
        patience: Validations in a row that may be no better before training stops.
        precision: Of matrix products, `bf16` or `fp32`.
    """

    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    batch_size: int = Field(32, ge=2)
    accumulate: int = Field(1, ge=1)
    peak_lr: float = Field(3e-4, gt=0)
    first_lr: float = Field(1e-6, ge=0)
    final_lr: float = Field(1e-6, ge=0)
    warmup_steps: int = Field(1000, ge=0)
    schedule: Literal["cosine", "epochs"] = "epochs"
    decay: float = Field(0.9, gt=0, le=1)
    weight_decay: float = Field(0.05, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    validate_every: int = Field(1000, ge=1)
    patience: int | None = Field(None, ge=1)
    precision: Literal["bf16", "fp32"] = "bf16"

    @model_validator(mode="after")
    def _one_length(self) -> OptimisationSection:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give steps or epochs, not both")
        return self

    def loop(self, rows_per_epoch: int, processes: int, seed: int) -> LoopConfig:
        """Return what `fit` takes, once the data's size is known."""
        per_epoch = max(1, rows_per_epoch // (self.batch_size * processes * self.accumulate))
        settings = self.model_dump(exclude={"steps", "epochs", "batch_size"})
        steps = self.steps or max(1, round((self.epochs or 0) * per_epoch))
        return LoopConfig(steps=steps, steps_per_epoch=per_epoch, seed=seed, **settings)


class Recipe(Section):
    """Hold all a run is told."""

    model: ModelSection
    data: DataSection
    objectives: ObjectivesSection = ObjectivesSection()
    optimisation: OptimisationSection
    seed: int = Field(0, ge=0)


def read_recipe(path: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe; relative paths in it start from the current folder.

    Args:
        path: A `.toml` file, or the `recipe.json` an earlier run saved.
        changes: Settings to put in place of the file's, by dotted name: `optimisation.steps`.

    Raises:
        ConfigError: The file cannot be read, or a setting is missing, unknown or wrong; the
            message names file and setting.
    """
    return validated(Recipe, read_settings(path, changes), path)


def read_settings(path: str | Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read a recipe's settings as they stand, with changes.

    Raises:
        ConfigError: The file cannot be read, or a change names no section of it.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        data: dict[str, Any] = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:  # both parsers' errors are ValueErrors
        raise ConfigError(f"cannot read the recipe {path}: {error}") from error
    for name, value in (changes or {}).items():
        *sections, last = name.split(".")
        where: Any = data
        for section in sections:
            where = where.setdefault(section, {}) if isinstance(where, dict) else None
        if not isinstance(where, dict):
            raise ConfigError(f"{name!r} names no setting of {path}; write section.setting=value")
        where[last] = value
    return data


def validated(kind: type[T], data: Mapping[str, Any], path: str | Path) -> T:
    """Check settings.

    Raises:
        ConfigError: One is missing, unknown or wrong; the message names file and setting.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        found = "; ".join(
            f"{'.'.join(str(part) for part in e['loc']) or 'recipe'}: {e['msg']}"
            for e in error.errors()
        )
        raise ConfigError(f"{path}: {found}") from error
