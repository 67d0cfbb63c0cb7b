"""One training loop: warm-up and decay, clipping, validation, checkpoints that resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from edje_qdrant.errors import CheckpointError, ConfigError, EdjeError

__all__ = ["LoopConfig", "autocast", "fit", "learning_rate"]


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """Settle how long and how fast to train.

    Attributes:
        steps: Optimiser steps.
        peak_lr: Learning rate after warm-up.
        warmup_steps: Steps of linear warm-up from nothing.
        final_lr: Where the cosine decay ends.
        weight_decay: AdamW's, on matrices only.
        clip_norm: Largest norm of the gradient.
        validate_every: Steps between validations; each one writes a checkpoint.
    """

    steps: int
    peak_lr: float = 1e-3
    warmup_steps: int = 100
    final_lr: float = 1e-6
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    validate_every: int = 500

    def __post_init__(self) -> None:
        if self.steps < 1 or self.validate_every < 1 or self.peak_lr <= 0:
            raise ConfigError(f"steps, validate_every and peak_lr must be positive: {self}")


def learning_rate(step: int, config: LoopConfig) -> float:
    """Return the learning rate of `step` (from 0): linear warm-up, then a cosine to the end."""
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    low = min(config.final_lr, config.peak_lr)
    return low + (config.peak_lr - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which matrix products run in bfloat16."""
    return torch.autocast(device.type, dtype=torch.bfloat16)


def fit(
    module: nn.Module,
    batch_loss: Callable[[int], Mapping[str, Tensor]],
    config: LoopConfig,
    *,
    folder: Path,
    name: str,
    validate: Callable[[], Mapping[str, float]],
    best_by: str,
) -> dict[str, float]:
    """Train `module` in place and leave the weights of its best validation in it.

    Each step's losses are summed; those whose name starts with `_` are only logged. Everything is
    logged to `folder/name.jsonl`; the state goes to `folder/name.pt` at each validation, from
    which a run that was stopped goes on. Draw a step's data from its number alone, so that it
    goes on exactly.

    Args:
        module: What is trained: its parameters that require a gradient.
        batch_loss: Step number -> scalar losses by name.
        config: How long and how fast.
        folder: Where log and state go.
        name: Of this run.
        validate: Called without gradients, the module in evaluation mode -> figures by name.
        best_by: The figure that picks the weights; higher is better.

    Returns:
        The figures of the best validation, with `step`, and `seconds` of the whole.

    Raises:
        CheckpointError: `folder/name.pt` belongs to other settings.
        EdjeError: The loss is not finite; the last state is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=config.peak_lr,
        betas=(0.9, 0.98),
    )
    state = _State(folder / f"{name}.pt", module, optimizer, config)
    begun = state.load()
    started = time.perf_counter() - state.seconds
    log = (folder / f"{name}.jsonl").open("a", encoding="utf-8")
    bar = tqdm(total=config.steps, initial=begun, desc=name, unit="step", mininterval=2)
    with log, bar:
        for step in range(begun, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
            module.train()
            losses = batch_loss(step)
            total = torch.stack([v for k, v in losses.items() if not k.startswith("_")]).sum()
            figures = {k.lstrip("_"): v.item() for k, v in losses.items()}
            if not torch.isfinite(total):
                raise EdjeError(
                    f"{name}: the loss is not finite at step {step} ({figures}); the state of the "
                    f"last validation is kept in {state.path}; lower the learning rate"
                )
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
            optimizer.step()
            bar.update()
            if step % 20 == 0:
                bar.set_postfix({k: f"{v:.3f}" for k, v in figures.items()}, refresh=False)
                print(json.dumps({"step": step, **figures}), file=log, flush=True)
            if (step + 1) % config.validate_every == 0 or step + 1 == config.steps:
                module.eval()
                with torch.no_grad():
                    found = dict(validate())
                state.save(step + 1, found, found[best_by], time.perf_counter() - started)
                print(json.dumps({"step": step + 1, "validation": found}), file=log, flush=True)
                bar.write(f"{name} step {step + 1}: {found}")
    module.load_state_dict(state.best_weights)
    module.eval()
    return {**state.best, "seconds": state.seconds}


class _State:
    """Hold what a run needs to go on, and the best weights so far."""

    def __init__(
        self, path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, config: LoopConfig
    ) -> None:
        self.path, self.module, self.optimizer, self.config = path, module, optimizer, config
        self.best: dict[str, float] = {}
        self.best_score = -math.inf
        self.best_weights: dict[str, Tensor] = {}
        self.seconds = 0.0

    def load(self) -> int:
        """Take up the saved state, if there is one; return the step to go on with."""
        if not self.path.exists():
            return 0
        saved = torch.load(self.path, map_location="cpu", weights_only=True)
        if saved["config"] != asdict(self.config):
            raise CheckpointError(
                f"{self.path} was written with other settings ({saved['config']}); "
                "delete it to start anew",
                path=str(self.path),
            )
        self.module.load_state_dict(saved["module"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.best, self.best_score = saved["best"], saved["best_score"]
        self.best_weights, self.seconds = saved["best_weights"], saved["seconds"]
        step: int = saved["step"]
        return step

    def save(self, step: int, found: dict[str, float], score: float, seconds: float) -> None:
        """Write the state; keep the weights if `score` is the best so far."""
        weights = {k: v.detach().clone() for k, v in self.module.state_dict().items()}
        self.seconds = seconds
        if score > self.best_score:
            self.best_score, self.best_weights = score, weights
            self.best = {"step": step, **found}
        temporary = self.path.with_suffix(".tmp")
        torch.save(
            {
                "step": step,
                "config": asdict(self.config),
                "module": weights,
                "optimizer": self.optimizer.state_dict(),
                "best": self.best,
                "best_score": self.best_score,
                "best_weights": self.best_weights,
                "seconds": seconds,
            },
            temporary,
        )
        temporary.replace(self.path)
