"""One training loop, for one process or many: clipping, validation, checkpoints that resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from edje_qdrant.errors import CheckpointError, EdjeError, MissingExtraError
from edje_qdrant.training.schedule import LoopConfig, learning_rate

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["LoopConfig", "accelerator_for", "autocast", "fit"]

_LOG_EVERY = 20


def autocast(device: torch.device, precision: str = "bf16") -> AbstractContextManager[Any]:
    """Return a context in which matrix products run in bfloat16, or as they are."""
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def accelerator_for(device: str | torch.device | None = None) -> Accelerator:
    """Return what spreads a training over the processes that were started for it.

    Args:
        device: `cpu` to leave an accelerator that is there alone; the process's own by default.

    Raises:
        MissingExtraError: accelerate is not installed.
    """
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
    except ImportError as error:
        raise MissingExtraError("accelerate", "train") from error

    # Objectives that are off leave their heads without gradients.
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    on_cpu = device is not None and torch.device(device).type == "cpu"
    return Accelerator(cpu=on_cpu, kwargs_handlers=handlers)


def fit(
    module: nn.Module,
    batches: Callable[[int], Any],
    config: LoopConfig,
    *,
    folder: Path,
    name: str,
    validate: Callable[[], Mapping[str, float]],
    best_by: str,
    accelerator: Accelerator | None = None,
) -> dict[str, float]:
    """Train `module` in place and leave the weights of its best validation in it.

    `module(batch)` returns scalar losses by name, which are summed; those whose name starts with
    `_` are only logged. Everything is logged to `folder/name.jsonl` and for TensorBoard; the state
    goes to `folder/name.pt` at each validation, from which a run that was stopped goes on exactly:
    all that is random in a step must follow from its number, as torch's own generators do here.

    Args:
        module: What is trained: its parameters that require a gradient.
        batches: Number of a batch -> what `module` takes; step `s` takes the batches from
            `s * accumulate` on.
        config: How long and how fast.
        folder: Where logs and state go.
        name: Of this run.
        validate: Called in the first process, without gradients, the module in evaluation mode ->
            figures by name.
        best_by: The figure that picks the weights; higher is better.
        accelerator: Spreads the training over processes; made here by default.

    Returns:
        The figures of the best validation, with `step`, and `seconds` of the whole.

    Raises:
        CheckpointError: `folder/name.pt` belongs to other settings.
        EdjeError: A loss is not finite; the last state is kept.
        MissingExtraError: accelerate or tensorboard is not installed.
    """
    device = next(module.parameters()).device
    accelerator = accelerator or accelerator_for(device)
    main = accelerator.is_main_process
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
    spread = accelerator.prepare_model(module, device_placement=False)
    started = time.perf_counter() - state.seconds
    stop = state.out_of_patience
    with _Log(folder, name, begun, config.steps, shown=main) as log:
        for step in range(begun, config.steps):
            if stop:
                break
            rate = learning_rate(step, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            module.train()
            optimizer.zero_grad(set_to_none=True)
            for part in range(config.accumulate):
                number = step * config.accumulate + part
                torch.manual_seed(_seed(config.seed, number, accelerator.process_index))
                batch = batches(number)
                last = part == config.accumulate - 1
                with nullcontext() if last else accelerator.no_sync(spread):
                    with autocast(device, config.precision):
                        losses = spread(batch)
                    total = torch.stack([v for k, v in losses.items() if k[0] != "_"]).sum()
                    _check_finite(total, losses, step, name, state.path)
                    (total / config.accumulate).backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
            optimizer.step()
            figures = {k.lstrip("_"): v.item() for k, v in losses.items()}
            log.step(step, {**figures, "gradient_norm": norm.item(), "learning_rate": rate})
            if (step + 1) % config.validate_every == 0 or step + 1 == config.steps:
                module.eval()
                if main:
                    with torch.no_grad():
                        found = dict(validate())
                    state.save(step + 1, found, found[best_by], time.perf_counter() - started)
                    log.validation(step + 1, found)
                stop = _agreed(state.out_of_patience, accelerator)
    accelerator.wait_for_everyone()
    if not main:
        state.load()
    module.load_state_dict(state.best_weights)
    module.eval()
    return {**state.best, "seconds": state.seconds}


def _seed(seed: int, number: int, process: int) -> int:
    return (seed * 1_000_003 + number) * 1009 + process


def _check_finite(
    total: Tensor, losses: Mapping[str, Tensor], step: int, name: str, path: Path
) -> None:
    if not torch.isfinite(total):
        figures = {k.lstrip("_"): v.item() for k, v in losses.items()}
        kept = f"the state of the last validation is kept in {path}" if path.exists() else ""
        raise EdjeError(
            f"{name}: the loss is not finite at step {step} ({figures}); lower the learning rate, "
            f"or look for broken data; {kept or 'nothing had been saved yet'}"
        )


def _agreed(stop: bool, accelerator: Accelerator) -> bool:
    """Return what the first process decided."""
    if accelerator.num_processes == 1:
        return stop
    from accelerate.utils import broadcast_object_list

    return bool(broadcast_object_list([stop])[0])


class _Log:
    """Write a run's figures to a JSONL file and for TensorBoard, and show a bar."""

    def __init__(self, folder: Path, name: str, begun: int, steps: int, *, shown: bool) -> None:
        self._shown = shown
        if not shown:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("tensorboard", "train") from error
        self._name = name
        self._file = (folder / f"{name}.jsonl").open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard" / name), purge_step=begun)
        self._bar = tqdm(total=steps, initial=begun, desc=name, unit="step", mininterval=2)

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._bar.close()
            self._board.close()
            self._file.close()

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        if not self._shown:
            return
        self._bar.update()
        if step % _LOG_EVERY == 0:
            self._bar.set_postfix({k: f"{v:.3g}" for k, v in figures.items()}, refresh=False)
            self._write({"step": step, **figures}, figures, step)

    def validation(self, step: int, figures: Mapping[str, float]) -> None:
        named = {f"validation/{k}": v for k, v in figures.items()}
        self._write({"step": step, "validation": dict(figures)}, named, step)
        self._bar.write(f"{self._name} step {step}: {dict(figures)}")

    def _write(self, line: Mapping[str, Any], scalars: Mapping[str, float], step: int) -> None:
        print(json.dumps(line), file=self._file, flush=True)
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)


class _State:
    """Hold what a run needs to go on, and the best weights so far."""

    def __init__(
        self, path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, config: LoopConfig
    ) -> None:
        self.path, self.module, self.optimizer, self.config = path, module, optimizer, config
        self.best: dict[str, float] = {}
        self.best_score = -math.inf
        self.best_weights: dict[str, Tensor] = {}
        self.no_better = 0
        self.seconds = 0.0

    @property
    def out_of_patience(self) -> bool:
        return self.config.patience is not None and self.no_better >= self.config.patience

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
        self.no_better = saved["no_better"]
        step: int = saved["step"]
        return step

    def save(self, step: int, found: dict[str, float], score: float, seconds: float) -> None:
        """Write the state; keep the weights if `score` is the best so far."""
        weights = {k: v.detach().clone() for k, v in self.module.state_dict().items()}
        self.seconds = seconds
        self.no_better += 1
        if score > self.best_score:
            self.best_score, self.best_weights, self.no_better = score, weights, 0
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
                "no_better": self.no_better,
                "seconds": seconds,
            },
            temporary,
        )
        temporary.replace(self.path)
