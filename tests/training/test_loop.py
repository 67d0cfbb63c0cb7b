from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from edje_qdrant.errors import CheckpointError, ConfigError, EdjeError
from edje_qdrant.training.loop import LoopConfig, fit, learning_rate

CONFIG = LoopConfig(steps=20, peak_lr=0.1, warmup_steps=4, validate_every=5, weight_decay=0.0)


class StoppedError(Exception):
    """Stand for a kill."""


class Line(nn.Module):
    """Learn to sum three numbers, with some dropout in the way."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(3, 1)

    def forward(self, rows):
        found = self.line(nn.functional.dropout(rows, 0.1, self.training))[:, 0]
        loss = (found - rows.sum(dim=1)).square().mean()
        return {"loss": loss, "_logged": loss + 1}


def train(folder, *, config=CONFIG, stop_at=None, poison_at=None, score=None, progress=True):
    torch.manual_seed(0)
    module = Line()

    def batches(number):
        if number == stop_at:
            raise StoppedError
        rows = torch.randn(16, 3, generator=torch.Generator().manual_seed(number))
        return rows * (float("nan") if number == poison_at else 1.0)

    def validate():
        assert not module.training
        error = float((module.line.weight - 1).abs().mean())
        return {"score": -error if score is None else score(module), "error": error}

    figures = fit(
        module, batches, config, folder=folder, name="run", validate=validate, best_by="score",
        progress=progress,
    )  # fmt: skip
    return module, figures


def test_it_learns_logs_and_reports_the_best_validation(tmp_path):
    _module, figures = train(tmp_path)
    assert figures["error"] < 0.4
    assert figures["step"] == 20
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert lines[0].keys() == {"step", "loss", "logged", "gradient_norm", "learning_rate"}
    assert [line["step"] for line in lines if "validation" in line] == [5, 10, 15, 20]


def test_a_bar_is_shown_only_if_asked_for(tmp_path, capsys):
    train(tmp_path / "a")
    assert "step/s" in capsys.readouterr().err
    train(tmp_path / "b", progress=False)
    assert capsys.readouterr().err == ""


def test_the_seconds_are_those_that_passed(tmp_path):
    started = time.perf_counter()
    _, figures = train(tmp_path)
    assert 0 < figures["seconds"] <= time.perf_counter() - started


def test_a_stopped_run_goes_on_exactly(tmp_path):
    whole, figures = train(tmp_path / "whole")
    with pytest.raises(StoppedError):
        train(tmp_path / "parts", stop_at=13)
    resumed, again = train(tmp_path / "parts")
    assert torch.equal(whole.line.weight, resumed.line.weight)
    assert again["error"] == figures["error"]


def test_the_best_validation_is_kept_not_the_last(tmp_path):
    seen: list[torch.Tensor] = []

    def score(module):
        seen.append(module.line.weight.detach().clone())
        return -float(len(seen) != 2)  # the second validation is the best

    module, figures = train(tmp_path, score=score)
    assert figures["step"] == 10
    assert torch.equal(module.line.weight, seen[1])
    assert not torch.equal(module.line.weight, seen[-1])


def test_of_equal_validations_the_later_is_kept_and_counts_as_no_improvement(tmp_path):
    scores = iter([1.0, 3.0, 3.0, 2.0])
    _, figures = train(tmp_path / "whole", score=lambda _: next(scores))
    assert figures["step"] == 15
    config = replace(CONFIG, patience=1)
    scores = iter([1.0, 3.0, 3.0, 9.0])
    _, figures = train(tmp_path / "patient", config=config, score=lambda _: next(scores))
    assert figures["step"] == 15
    assert next(scores) == 9.0


def test_training_stops_where_nothing_gets_better_and_stays_stopped(tmp_path):
    config = replace(CONFIG, patience=2)
    scores = iter([1.0, 3.0, 2.0, 2.0, 9.0])
    _, figures = train(tmp_path, config=config, score=lambda _: next(scores))
    assert figures["step"] == 10
    assert torch.load(tmp_path / "run.pt", weights_only=True)["step"] == 20
    _, again = train(tmp_path, config=config, score=lambda _: next(scores))
    assert (again["step"], next(scores)) == (10, 9.0)


def test_accumulated_batches_make_one_step_of_their_mean(tmp_path):
    """Two equal batches are the step one of them makes."""

    def last_loss(folder, accumulate):
        module, rows = Line(), torch.ones(4, 3)
        module.load_state_dict({"line.weight": torch.zeros(1, 3), "line.bias": torch.zeros(1)})
        module.line.requires_grad_(True)
        drop, nn.functional.dropout = nn.functional.dropout, lambda x, *_: x
        try:
            fit(
                module, lambda _: rows, replace(CONFIG, accumulate=accumulate, precision="fp32"),
                folder=folder, name="run", validate=lambda: {"x": 1.0}, best_by="x",
            )  # fmt: skip
        finally:
            nn.functional.dropout = drop
        lines = [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]
        return lines[0]["gradient_norm"], torch.load(folder / "run.pt")["module"]["line.weight"]

    once, weights = last_loss(tmp_path / "1", 1)
    twice, same = last_loss(tmp_path / "2", 2)
    assert once == twice
    assert torch.equal(weights, same)


def test_tensorboard_has_the_figures(tmp_path):
    train(tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "tensorboard" / "run")).Reload()
    assert [e.step for e in board.Scalars("validation/error")] == [5, 10, 15, 20]
    assert "loss" in board.Tags()["scalars"]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(tmp_path):
    with pytest.raises(EdjeError, match="not finite at step 12"):
        train(tmp_path, poison_at=12)
    assert torch.load(tmp_path / "run.pt", weights_only=True)["step"] == 10


def test_another_runs_state_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(CheckpointError, match="delete it to start from the beginning"):
        train(tmp_path, config=replace(CONFIG, steps=30))


def test_the_learning_rate_warms_up_and_decays():
    config = LoopConfig(steps=100, peak_lr=1.0, warmup_steps=10, final_lr=0.0)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


def test_the_papers_schedule_falls_by_epochs_to_a_floor():
    config = LoopConfig(
        steps=100, peak_lr=1.0, warmup_steps=4, first_lr=0.2, final_lr=0.7, schedule="epochs",
        decay=0.9, steps_per_epoch=10,
    )  # fmt: skip
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[:4] == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert rates[9::10][:5] == pytest.approx([1.0, 0.9, 0.81, 0.729, 0.7])
    assert rates[-1] == 0.7


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"accumulate": 0}, {"patience": 0}, {"peak_lr": 0}]
)
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match="must be positive"):
        LoopConfig(**{"steps": 5, **wrong})
