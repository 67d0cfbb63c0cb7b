"""The training loop, for one or several processes: clipping, validation, resumable state."""

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
from edje_qdrant.files import replaced_file
from edje_qdrant.training.schedule import LoopConfig, learning_rate

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["LoopConfig", "accelerator_for", "autocast", "fit", "require_accelerate"]

_LOG_EVERY = 20


def autocast(device: torch.device, precision: str = "bf16") -> AbstractContextManager[Any]:
    """Return a context that runs matrix products in bfloat16, or one that changes nothing."""
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def require_accelerate() -> None:
    """Check that training is possible, before data are prepared for it.

    Raises:
        MissingExtraError: accelerate is not installed.
    """
    try:
        import accelerate  # noqa: F401 - its import is the check
    except ImportError as error:
        raise MissingExtraError("accelerate", "train") from error


def accelerator_for(device: str | torch.device | None = None) -> Accelerator:
    """Return the `Accelerator` for the processes that were started to train together.

    Args:
        device: `cpu` to not use a GPU; by default each process's own device.

    Raises:
        MissingExtraError: accelerate is not installed.
    """
    require_accelerate()
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # The heads of objectives with weight 0 get no gradients.
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
    progress: bool = True,
) -> dict[str, float]:
    """Train `module` in place and load the weights of the best validation into it.

    `module(batch)` returns scalar losses by name. They are summed, except for those whose name
    starts with `_`, which are only logged. Logs go to `folder/name.jsonl` and to TensorBoard. The
    state is saved to `folder/name.pt` at each validation, and a stopped run resumes from it with
    identical results: torch's generators are seeded from the batch number, and `batches` must
    depend on nothing else.

    Args:
        module: Its parameters that require a gradient are trained.
        batches: Batch number -> input of `module`; step `s` uses the batches from
            `s * accumulate` on.
        config: Number of steps, learning rate and so on.
        folder: For logs and state.
        name: Of this run, for its files.
        validate: Returns figures by name; called in the first process only, without gradients and
            with the module in evaluation mode.
        best_by: Name of the figure that selects the weights; higher is better, and of equal ones
            the later.
        accelerator: Distributes the training over processes; created by default.
        progress: Show a bar on stderr.

    Returns:
        The figures of the best validation, its `step`, and `seconds` of the whole training.

    Raises:
        CheckpointError: `folder/name.pt` was written with other settings.
        EdjeError: A loss is not finite; the last saved state is kept.
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
    with _Log(folder, name, begun, config.steps, main=main, progress=progress) as log:
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
            f"or check the data; {kept or 'no state was saved yet'}"
        )


def _agreed(stop: bool, accelerator: Accelerator) -> bool:
    """Return the first process's decision, in every process."""
    if accelerator.num_processes == 1:
        return stop
    from accelerate.utils import broadcast_object_list

    return bool(broadcast_object_list([stop])[0])


class _Log:
    """Write a run's figures to a JSONL file and to TensorBoard, and show a bar."""

    def __init__(
        self, folder: Path, name: str, begun: int, steps: int, *, main: bool, progress: bool
    ) -> None:
        self._main = main
        if not main:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("tensorboard", "train") from error
        self._name = name
        self._file = (folder / f"{name}.jsonl").open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard" / name), purge_step=begun)
        self._bar = tqdm(
            total=steps, initial=begun, desc=name, unit="step", mininterval=2, disable=not progress
        )

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            self._bar.close()
            self._board.close()
            self._file.close()

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        if not self._main:
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
    """The state that a run needs to resume, and the best weights so far."""

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
        """Load the saved state, if there is one; return the next step."""
        if not self.path.exists():
            return 0
        saved = torch.load(self.path, map_location="cpu", weights_only=True)
        if saved["config"] != asdict(self.config):
            raise CheckpointError(
                f"{self.path} was written with other settings ({saved['config']}); "
                "delete it to start from the beginning",
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
        """Save the state; keep the weights if no earlier `score` is better.

        Of equal scores the later is kept: its weights were trained for longer, at a lower rate.
        """
        weights = {k: v.detach().clone() for k, v in self.module.state_dict().items()}
        self.seconds = seconds
        self.no_better = 0 if score > self.best_score else self.no_better + 1
        if score >= self.best_score:
            self.best_score, self.best_weights = score, weights
            self.best = {"step": step, **found}
        state = {
            "step": step,
            "config": asdict(self.config),
            "module": weights,
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "best_score": self.best_score,
            "best_weights": self.best_weights,
            "no_better": self.no_better,
            "seconds": seconds,
        }
        with replaced_file(self.path) as file:
            torch.save(state, file)
