from __future__ import annotations

import json
import sys

import pytest
import torch

from edje_qdrant.demo.joint import JointSettings
from edje_qdrant.demo.recipe import DEMO_RECIPE, read_demo_recipe, train_demo
from edje_qdrant.demo.run import run_demo
from edje_qdrant.demo.scenes import draw_scenes
from edje_qdrant.errors import ConfigError, MissingExtraError
from edje_qdrant.model import EDJEModel

STAGES = ("tower", "joint", "relations")


SMALL = {"scenes.pictures": 400, "scenes.tower_steps": 12, "joint.steps": 20, "relations.steps": 10}


@pytest.mark.slow
def test_the_recipe_trains_saves_and_goes_on(tmp_path):
    out, work = tmp_path / "model", tmp_path / "work"
    recipe = read_demo_recipe(changes=SMALL)
    report = train_demo(out, work, recipe, device="cpu")
    assert all(report[stage]["step"] > 0 for stage in STAGES)
    assert json.loads((out / "training.json").read_text()) == report
    model = EDJEModel.from_pretrained(out)
    images = torch.zeros(2, 3, 96, 96)
    assert model.encode_pixels(images).tokens.shape == (2, 16, 128)
    again = train_demo(out, work, recipe, device="cpu")
    assert [again[k] for k in STAGES] == [report[k] for k in STAGES]
    assert again["seconds_of_this_run"] <= report["seconds_of_this_run"]
    found = run_demo(tmp_path / "demo", images=20, model=str(out), progress=False)
    assert found.images == 20


def test_the_recipe_is_the_bundled_models():
    recipe = read_demo_recipe()
    assert recipe.joint.settings() == JointSettings()
    last = recipe.relations.settings(JointSettings())
    assert (last.places, last.brief_texts) == (1.0, 0.35)
    assert (last.words_alone, last.random_pairs) == (0.0, 0.0)
    trained = json.loads((DEMO_RECIPE.parent / "model" / "training.json").read_text())
    assert trained["recipe"] == recipe.model_dump()


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"scenes.pictures": 0}, "scenes.pictures"),
        ({"joint.adapter": "other"}, "joint.adapter"),
        ({"joint.tokens": 3}, "joint.tokens"),
        ({"relations.steps": 0}, "relations.steps"),
        ({"joint.objectives.matching": -1}, "joint.objectives"),
    ],
)
def test_senseless_settings_are_refused_by_name(changes, setting):
    with pytest.raises(ConfigError, match=f"recipe.toml: {setting}: "):
        read_demo_recipe(changes=changes)


@pytest.mark.slow
def test_nothing_the_demo_shows_was_in_training():
    shown = {scene.content for scene in draw_scenes("test", 1, 1000)}
    trained = {scene.content for scene in draw_scenes("train", 1, 20_000)}
    assert not shown & trained


def test_without_its_extra_nothing_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match=r"edje-qdrant\[train\]"):
        train_demo(tmp_path / "model", tmp_path / "work")
    assert [*tmp_path.iterdir()] == []
