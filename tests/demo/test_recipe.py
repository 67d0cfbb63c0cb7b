from __future__ import annotations

import json

import pytest
import torch

from edje_qdrant.demo.recipe import train_demo
from edje_qdrant.demo.run import run_demo
from edje_qdrant.demo.scenes import draw_scenes
from edje_qdrant.errors import ConfigError
from edje_qdrant.model import EDJEModel

STAGES = ("tower", "joint")


@pytest.mark.slow
def test_the_recipe_trains_saves_and_goes_on(tmp_path):
    out, work = tmp_path / "model", tmp_path / "work"
    report = train_demo(out, work, scale=0.004, device="cpu")
    assert all(report[stage]["step"] > 0 for stage in STAGES)
    assert json.loads((out / "training.json").read_text()) == report
    model = EDJEModel.from_pretrained(out)
    images = torch.zeros(2, 3, 96, 96)
    assert model.encode_pixels(images).tokens.shape == (2, 16, 128)
    again = train_demo(out, work, scale=0.004, device="cpu")
    assert [again[k] for k in STAGES] == [report[k] for k in STAGES]
    assert again["seconds_of_this_run"] <= report["seconds_of_this_run"]
    found = run_demo(tmp_path / "demo", pictures=20, model=str(out), progress=False)
    assert found.pictures == 20


@pytest.mark.parametrize("scale", [0, -1, 1000])
def test_a_senseless_scale_is_refused(tmp_path, scale):
    with pytest.raises(ConfigError, match="scale"):
        train_demo(tmp_path / "model", tmp_path / "work", scale=scale)


def test_nothing_the_demo_shows_was_in_training():
    shown = {scene.content for scene in draw_scenes("test", 1, 1000)}
    trained = {scene.content for scene in draw_scenes("train", 1, 20_000)}
    assert not shown & trained
