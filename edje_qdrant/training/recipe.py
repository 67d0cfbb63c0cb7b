"""Training recipes: TOML or JSON files, validated completely before anything is loaded."""

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
    "LanguageModelSection",
    "ModelSection",
    "ObjectivesSection",
    "OptimisationSection",
    "Pairs",
    "Recipe",
    "Section",
    "TowerSection",
    "WeightsSection",
    "read_recipe",
    "read_settings",
    "validated",
]

T = TypeVar("T", bound=BaseModel)


class Section(BaseModel):
    """A section of a recipe; unknown settings are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TowerSection(Section):
    """A first stage that is trained from nothing, before the joint encoder: a small SigLIP.

    Attributes:
        name: The encoder's name in contracts.
        image_size: Pixels of a side.
        patch_size: Pixels of a patch's side; divides `image_size`.
        width: Of the vision tower and of the embeddings; a multiple of 4 and of `heads`.
        layers: Of the vision tower.
        heads: Attention heads of the vision tower.
        text_width: Of the text tower; a multiple of `text_heads`.
        text_layers: Of the text tower.
        text_heads: Attention heads of the text tower.
        text_length: Word pieces of a text; longer texts are cut.
        vocabulary: Number of word pieces, which are learnt from the captions.
        steps: Optimiser steps.
        batch_size: Pairs per process and step.
        peak_lr: Learning rate after warm-up, then falling as a cosine.
        warmup_steps: Steps of linear warm-up; a fifth of `steps` at most.
        validate_every: Steps between validations and checkpoints.
    """

    name: str = Field("tower", min_length=1)
    image_size: int = Field(96, ge=8)
    patch_size: int = Field(12, ge=2)
    width: int = Field(192, ge=8)
    layers: int = Field(4, ge=1)
    heads: int = Field(6, ge=1)
    text_width: int = Field(128, ge=8)
    text_layers: int = Field(3, ge=1)
    text_heads: int = Field(4, ge=1)
    text_length: int = Field(32, ge=4)
    vocabulary: int = Field(8000, ge=64)
    steps: int = Field(ge=1)
    batch_size: int = Field(128, ge=2)
    peak_lr: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(300, ge=0)
    validate_every: int = Field(250, ge=1)

    @model_validator(mode="after")
    def _divides(self) -> TowerSection:
        for name, size, parts, by in (
            ("image_size", self.image_size, "patch_size", self.patch_size),
            ("width", self.width, "heads", self.heads),
            ("text_width", self.text_width, "text_heads", self.text_heads),
        ):
            if size % by:
                raise ValueError(f"{name} {size} is not a multiple of {parts} {by}")
        if self.width % 4:
            raise ValueError(f"width {self.width} is not a multiple of 4")
        return self


class LanguageModelSection(Section):
    """A language model with random weights, for a joint encoder from nothing.

    It has the tower's word pieces.

    Attributes:
        width: Of its layers; the tokens of an image get this width.
        layers: Number of layers.
        heads: Attention heads; divide `width`.
    """

    width: int = Field(128, ge=8)
    layers: int = Field(6, ge=1)
    heads: int = Field(4, ge=1)

    @model_validator(mode="after")
    def _divides(self) -> LanguageModelSection:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class ModelSection(Section):
    """The model to train: a new one, or an existing one to continue with.

    Attributes:
        start_from: An EDJE model to continue with, as `EDJEModel.from_pretrained` takes it. If
            missing, a new model is built from the other settings.
        encoder: Folder or hub id of the SigLIP, or `open_clip:<model>@<weights>`; or the folder of
            an EDJE model, whose encoder is taken. Left out if the recipe has a section `tower`.
        language_model: Folder or hub id of a BERT with its masked-language-model head; not used
            if the recipe has a section `language_model`.
        adapter: `compressed` or `local`.
        num_tokens: Tokens per image of the compressed adapter.
        adapter_hidden_size: Width of the adapter's MLP.
        joint_encoder_from: An EDJE model, for example a trained local one, whose joint encoder
            initialises the new model's.
        look_at_regions: Initialise each query of a compressed adapter to attend to its own region,
            rather than to the whole image.
        freeze_language_model: Train only the adapter and the heads.
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


class Pairs(Section):
    """A file of images with captions.

    Attributes:
        path: `.json` or `.jsonl` annotations, Karpathy's files, WebDataset shards
            (`cc3m-{00000..00331}.tar`), or a folder that `datasets` saved.
        images: Folder of relative image paths.
        split: Split of a Karpathy file or a saved data set.
        weight: Passes through the file per epoch.
    """

    path: str
    images: str | None = None
    split: str | None = None
    weight: float = Field(1.0, gt=0)


class DataSection(Section):
    """The data to train on.

    Attributes:
        train: One or more files.
        validation: Selects the best weights; not trained on.
        validation_pictures: Maximum number of validation images.
        num_candidates: Images reranked per validation query.
        cache_vision: Folder for the encoder's output: each image is encoded once and not
            augmented. Without it, images are read and encoded in every epoch.
        augment: Crop images at random, if they are not cached.
        workers: Threads that read images.
        grouped_batches: Number of batches whose images are redistributed together, so that similar
            images share a batch and its negatives are hard; 1 leaves the order random. Needs
            `cache_vision`.
    """

    train: list[Pairs] = Field(min_length=1)
    validation: Pairs
    validation_pictures: int = Field(1000, ge=2)
    num_candidates: int = Field(10, ge=2)
    cache_vision: str | None = None
    augment: bool = True
    workers: int = Field(4, ge=1)
    grouped_batches: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _cached(self) -> DataSection:
        if self.grouped_batches > 1 and self.cache_vision is None:
            raise ValueError(
                "grouped_batches needs the embeddings of all images: name a folder cache_vision"
            )
        return self


class WeightsSection(Section):
    """Weights of the objectives, as in `Objectives`.

    Attributes:
        matching: Weight of image-text matching.
        words: Weight of masked words.
        recovery: Weight of text recovery.
        distillation: Weight of the teacher's scores.
        num_negatives: Number of wrong images, and of wrong captions, per pair.
        masked_share: Share of a caption's word pieces that is masked.
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
        """Return the objectives for `TrainedParts`."""
        return Objectives(**{name: getattr(self, name) for name in WeightsSection.model_fields})


class ObjectivesSection(WeightsSection):
    """Weights of the objectives, the teacher, and when matching begins.

    Attributes:
        teacher: An EDJE model with the same encoder, for example a local one.
        matching_from: Share of the steps before matching begins.
        hard_from: Share of the steps with random negatives before hard ones begin; 1 is all steps.
    """

    teacher: str | None = None
    matching_from: float = Field(0.0, ge=0, le=1)
    hard_from: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _taught(self) -> ObjectivesSection:
        if bool(self.distillation) != (self.teacher is not None):
            raise ValueError("distillation needs a teacher, and a teacher needs a weight above 0")
        return self


class OptimisationSection(Section):
    """Length and learning rate of the training, as in `LoopConfig`.

    Attributes:
        steps: Optimiser steps, if `epochs` is not given.
        epochs: Passes through the data, if `steps` is not given.
        batch_size: Pairs per process and batch; negatives come from all processes' batches.
        accumulate: Batches per step.
        peak_lr: Learning rate after warm-up.
        first_lr: Learning rate at the start of warm-up.
        final_lr: Lower bound of the learning rate.
        warmup_steps: Steps of linear warm-up.
        schedule: `epochs` (times `decay` after each epoch, as in the paper) or `cosine`.
        decay: Factor of `epochs`.
        weight_decay: AdamW's weight decay.
        clip_norm: Largest norm of the gradient.
        validate_every: Steps between validations and checkpoints.
        patience: Training stops after this many validations without improvement.
        precision: Of matrix products, `bf16` or `fp32`; also of the tower's training.
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
        """Return the configuration of `fit` for data of a known size."""
        per_epoch = max(1, rows_per_epoch // (self.batch_size * processes * self.accumulate))
        settings = self.model_dump(exclude={"steps", "epochs", "batch_size"})
        steps = self.steps or max(1, round((self.epochs or 0) * per_epoch))
        return LoopConfig(steps=steps, steps_per_epoch=per_epoch, seed=seed, **settings)


class Recipe(Section):
    """All settings of a training run.

    Attributes:
        tower: Train a first stage from nothing first.
        language_model: Begin the joint encoder with random weights.
        model: The model to train.
        data: Images and captions.
        objectives: Weights of the losses.
        optimisation: Length and learning rate of the joint encoder's training.
        seed: Of weights, batches and crops.
    """

    tower: TowerSection | None = None
    language_model: LanguageModelSection | None = None
    model: ModelSection = ModelSection()
    data: DataSection
    objectives: ObjectivesSection = ObjectivesSection()
    optimisation: OptimisationSection
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _one_start(self) -> Recipe:
        starts = [self.model.start_from, self.model.encoder, self.tower]
        if sum(start is not None for start in starts) != 1:
            raise ValueError(
                "name one start: model.start_from (a model to continue with), model.encoder (for "
                "a new model), or a section tower (an encoder from nothing)"
            )
        if self.language_model is not None and self.tower is None:
            raise ValueError(
                "a section language_model needs a section tower, whose word pieces it takes; name "
                "model.language_model"
            )
        return self


def read_recipe(path: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe; relative paths in it are relative to the current folder.

    Args:
        path: A `.toml` file, or the `recipe.json` that an earlier run saved.
        changes: Settings that replace the file's, by dotted name such as `optimisation.steps`.

    Raises:
        ConfigError: The file cannot be read, or a setting is missing, unknown or invalid; the
            message names file and setting.
    """
    return validated(Recipe, read_settings(path, changes), path)


def read_settings(path: str | Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read a recipe's settings and apply changes, without validation.

    Raises:
        ConfigError: The file cannot be read, or a change names a section that is not there.
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
    """Validate settings.

    Raises:
        ConfigError: A setting is missing, unknown or invalid; the message names file and setting.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        found = "; ".join(
            f"{'.'.join(str(part) for part in e['loc']) or 'recipe'}: {e['msg']}"
            for e in error.errors()
        )
        raise ConfigError(f"{path}: {found}") from error
