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


def train(folder, *, config=CONFIG, stop_at=None, poison_at=None, score=None):
    torch.manual_seed(0)
    module = nn.Linear(3, 1)

    def batch_loss(step):
        if step == stop_at:
            raise StoppedError
        rows = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
        loss = (module(rows)[:, 0] - rows.sum(dim=1)).square().mean()
        return {"loss": loss * (float("nan") if step == poison_at else 1.0), "_logged": loss + 1}

    def validate():
        assert not module.training
        error = float((module.weight - 1).abs().mean())
        return {"score": -error if score is None else score(module), "error": error}

    figures = fit(
        module, batch_loss, config, folder=folder, name="run", validate=validate, best_by="score"
    )
    return module, figures


def test_it_learns_logs_and_reports_the_best_validation(tmp_path):
    _module, figures = train(tmp_path)
    assert figures["error"] < 0.4
    assert figures["step"] == 20
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert lines[0].keys() == {"step", "loss", "logged"}
    assert [line["step"] for line in lines if "validation" in line] == [5, 10, 15, 20]


def test_the_seconds_are_those_that_passed(tmp_path):
    started = time.perf_counter()
    _, figures = train(tmp_path)
    assert 0 < figures["seconds"] <= time.perf_counter() - started


def test_a_stopped_run_goes_on_exactly(tmp_path):
    whole, figures = train(tmp_path / "whole")
    with pytest.raises(StoppedError):
        train(tmp_path / "parts", stop_at=13)
    resumed, again = train(tmp_path / "parts")
    assert torch.equal(whole.weight, resumed.weight)
    assert again["error"] == figures["error"]


def test_the_best_validation_is_kept_not_the_last(tmp_path):
    seen: list[torch.Tensor] = []

    def score(module):
        seen.append(module.weight.detach().clone())
        return -float(len(seen) != 2)  # the second validation is the best

    module, figures = train(tmp_path, score=score)
    assert figures["step"] == 10
    assert torch.equal(module.weight, seen[1])
    assert not torch.equal(module.weight, seen[-1])


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(tmp_path):
    with pytest.raises(EdjeError, match="not finite at step 12"):
        train(tmp_path, poison_at=12)
    assert torch.load(tmp_path / "run.pt", weights_only=True)["step"] == 10


def test_another_runs_state_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(CheckpointError, match="delete it to start anew"):
        train(tmp_path, config=replace(CONFIG, steps=30))


def test_the_learning_rate_warms_up_and_decays():
    config = LoopConfig(steps=100, peak_lr=1.0, warmup_steps=10, final_lr=0.0)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


def test_senseless_settings_are_refused():
    with pytest.raises(ConfigError, match="must be positive"):
        LoopConfig(steps=0)
