"""Length of the training and learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from edje_qdrant.errors import ConfigError

__all__ = ["LoopConfig", "learning_rate"]


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """Configuration of the training loop.

    Attributes:
        steps: Optimiser steps.
        peak_lr: Learning rate after warm-up.
        warmup_steps: Steps of linear warm-up.
        first_lr: Learning rate at the start of warm-up.
        final_lr: Lower bound of the learning rate, at the end of the decay.
        schedule: `cosine` down to the last step, or `epochs`: times `decay` after each epoch.
        decay: Factor of `epochs`.
        steps_per_epoch: For `epochs`.
        accumulate: Batches per step, whose gradients are averaged.
        weight_decay: AdamW's weight decay, on matrices only.
        clip_norm: Largest norm of the gradient.
        validate_every: Steps between validations; each one saves a checkpoint.
        patience: Training stops after this many validations without improvement; None: never.
        seed: Of dropout; the random numbers of a step depend on the seed and its number only.
        precision: Of matrix products.
    """

    steps: int
    peak_lr: float = 1e-3
    warmup_steps: int = 100
    first_lr: float = 0.0
    final_lr: float = 1e-6
    schedule: Literal["cosine", "epochs"] = "cosine"
    decay: float = 0.9
    steps_per_epoch: int = 1
    accumulate: int = 1
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    validate_every: int = 500
    patience: int | None = None
    seed: int = 0
    precision: Literal["bf16", "fp32"] = "bf16"

    def __post_init__(self) -> None:
        counts = (self.steps, self.validate_every, self.steps_per_epoch, self.accumulate)
        if (
            min(counts) < 1
            or self.peak_lr <= 0
            or (self.patience is not None and self.patience < 1)
        ):
            raise ConfigError(
                "steps, peak_lr, validate_every, steps_per_epoch, accumulate and patience must be "
                f"positive: {self}"
            )


def learning_rate(step: int, config: LoopConfig) -> float:
    """Return the learning rate of `step` (from 0): linear warm-up, then the schedule.

    Source: EDJE facts, training: up from 1e-6, then times 0.9 per epoch, at least 1e-6.
    """
    if step < config.warmup_steps:
        rise = (step + 1) / config.warmup_steps
        return config.first_lr + (config.peak_lr - config.first_lr) * rise
    low = min(config.final_lr, config.peak_lr)
    if config.schedule == "epochs":
        return max(low, config.peak_lr * config.decay ** (step // config.steps_per_epoch))
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return low + (config.peak_lr - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
