"""Train in one process, then in two: what `test_distributed.py` starts.

Usage: two_processes.py OUT PORT. Each process takes its share of the same global batches, and
writes what came out.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from dataclasses import fields, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from tiny_edje import build_tiny_model

from edje_qdrant.model import EDJEModel
from edje_qdrant.training.loop import LoopConfig, accelerator_for, fit
from edje_qdrant.training.objectives import Batch, Objectives, TrainedParts

PAIRS, STEPS = 8, 3
CAPTIONS = [
    "a red kite", "two dogs", "some old blue boats", "a dog", "nine cats asleep",
    "a kite and a dog", "an old man in a red boat on a blue lake", "six",
]  # fmt: skip


def global_batch(model: EDJEModel, step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    ids, mask = model.tokenize(CAPTIONS)

    def unit() -> torch.Tensor:
        drawn = torch.randn(PAIRS, 24, generator=generator)
        return torch.nn.functional.normalize(drawn, dim=-1)

    patches = (PAIRS, model.encoder.num_patches, model.encoder.hidden_size)
    return Batch(
        vision_tokens=torch.randn(patches, generator=generator),
        image_embeddings=unit(),
        text_embeddings=unit(),
        input_ids=ids,
        attention_mask=mask,
        image_ids=torch.tensor([0, 1, 2, 1, 4, 5, 6, 0]),  # equal images in unlike processes
        caption_ids=torch.tensor([0, 1, 2, 3, 4, 5, 1, 7]),
        seed=step,
        hard=step != 1,
    )


def part_of(batch: Batch, process: int, processes: int) -> Batch:
    """Cut out one process's rows; its captions are padded to its own longest."""
    size = PAIRS // processes
    rows = slice(process * size, (process + 1) * size)
    cut = {
        f.name: getattr(batch, f.name)[rows]
        for f in fields(batch)
        if isinstance(getattr(batch, f.name), torch.Tensor)
    }
    longest = int(cut["attention_mask"].sum(dim=1).max())
    cut["input_ids"] = cut["input_ids"][:, :longest]
    cut["attention_mask"] = cut["attention_mask"][:, :longest]
    return replace(batch, **cut)


def gradients(accelerator: Accelerator, *, distil: bool) -> dict[str, torch.Tensor]:
    """Return the losses of the first two batches, averaged over processes, and their gradients."""
    model = build_tiny_model(dropout=0.0).train()
    settings = Objectives(num_negatives=2, distillation=float(distil))
    teacher = None
    if distil:
        teacher = build_tiny_model(1, adapter="local", dropout=0.0)
        teacher.encoder = model.encoder
    parts = TrainedParts(model, settings, teacher=teacher)
    spread = accelerator.prepare_model(parts, device_placement=False)
    found = {}
    for step in (0, 1):
        batch = part_of(
            global_batch(model, step), accelerator.process_index, accelerator.num_processes
        )
        parts.zero_grad()
        losses = {k: v for k, v in spread(batch).items() if not k.startswith("_")}
        torch.stack(list(losses.values())).sum().backward()
        for name, value in losses.items():
            found[f"{step} loss {name}"] = accelerator.reduce(value.detach(), "mean")
        for name, parameter in parts.named_parameters():
            found[f"{step} gradient {name}"] = parameter.grad.clone()
    return found


def trained(accelerator: Accelerator, out: Path) -> dict[str, torch.Tensor]:
    """Return the weights after three steps of two batches each."""
    model = build_tiny_model(dropout=0.0)
    parts = TrainedParts(model, Objectives())
    config = LoopConfig(
        steps=STEPS, peak_lr=1e-3, warmup_steps=1, accumulate=2, validate_every=2, precision="fp32"
    )
    figures = fit(
        parts,
        lambda n: part_of(
            global_batch(model, n), accelerator.process_index, accelerator.num_processes
        ),
        config,
        folder=out / f"run-{accelerator.num_processes}",
        name="run",
        validate=lambda: {"weight": float(parts.joint_encoder.classifier.weight.sum())},
        best_by="weight",
        accelerator=accelerator,
    )
    return {**parts.state_dict(), "best step": torch.tensor(figures["step"])}


def work(out: Path, port: str, process: int, processes: int) -> None:
    """Do all of it as one of several processes, and write what came out."""
    os.environ.update(
        {
            "RANK": str(process), "LOCAL_RANK": str(process), "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true",
        } if processes > 1 else {}
    )  # fmt: skip
    accelerator = accelerator_for("cpu")
    assert (accelerator.process_index, accelerator.num_processes) == (process, processes)
    for name, result in {
        "gradients": gradients(accelerator, distil=False),
        "distilled": gradients(accelerator, distil=True),
        "trained": trained(accelerator, out),
    }.items():
        torch.save(result, out / f"{name}-{process}-of-{processes}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    torch.set_num_threads(1)
    # To import torch takes longer than the work, so that happens once, before the forks.
    forks = multiprocessing.get_context("fork")
    for processes in (1, 2):
        started = [
            forks.Process(target=work, args=(Path(sys.argv[1]), sys.argv[2], process, processes))
            for process in range(processes)
        ]
        for each in started:
            each.start()
        for each in started:
            each.join()
            if each.exitcode != 0:
                for other in started:
                    other.kill()
                sys.exit(1)
