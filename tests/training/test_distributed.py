"""Two processes on the CPU (gloo) compute what one process computes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from tiny_edje import build_tiny_model

from edje_qdrant.training.objectives import Objectives, TrainedParts

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(HERE), str(HERE.parent), *sys.path])
    process = subprocess.Popen(
        [sys.executable, str(HERE / "two_processes.py"), str(out), str(port)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=250)
        assert process.returncode == 0, output
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    return {path.stem: torch.load(path, weights_only=True) for path in out.glob("*.pt")}


@pytest.mark.parametrize("kind", ["gradients", "distilled"])
def test_losses_and_gradients_are_those_of_one_process(results, kind):
    whole = results[f"{kind}-0-of-1"]
    assert len(whole) > 50
    for rank in (0, 1):
        part = results[f"{kind}-{rank}-of-2"]
        assert part.keys() == whole.keys()
        for name, expected in whole.items():
            torch.testing.assert_close(part[name], expected, atol=1e-5, rtol=1e-4, msg=name)
    assert whole["0 gradient adapter.query"].abs().max() > 1e-3


def test_every_objective_took_part(results):
    losses = {name for name in results["distilled-0-of-2"] if " loss " in name}
    names = ("words", "matching", "recovery", "distillation")
    assert losses == {f"{step} loss {name}" for step in (0, 1) for name in names}


def test_the_loop_ends_with_the_same_weights_in_both_processes_and_in_one(results):
    """Biases of keys have no gradient but rounding, which AdamW makes as large as any other."""
    gradients = results["gradients-0-of-1"]
    whole, *parts = (results[f"trained-{name}"] for name in ("0-of-1", "0-of-2", "1-of-2"))
    begun = TrainedParts(build_tiny_model(dropout=0.0), Objectives()).state_dict()
    driven = {
        n: gradients[f"0 gradient {n}"].abs() > 1e-4
        for n in begun
        if f"0 gradient {n}" in gradients
    }
    assert sum(mask.any() for mask in driven.values()) > 40
    for part in parts:
        assert part["best step"] == whole["best step"]
        for name, mask in driven.items():
            moved = (whole[name] - begun[name])[mask].abs()
            apart = (part[name] - whole[name])[mask].abs()
            assert apart.sum() <= 0.01 * moved.sum(), name
    for name, weights in parts[0].items():
        assert torch.equal(weights, parts[1][name]), name
