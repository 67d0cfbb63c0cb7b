from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edje_qdrant import EDJEModel
from edje_qdrant.data.pairs import open_pairs
from edje_qdrant.errors import ConfigError
from edje_qdrant.training import loop
from edje_qdrant.training.batches import captions_true_of
from edje_qdrant.training.loop import accelerator_for
from edje_qdrant.training.recipe import Recipe, read_recipe, validated
from edje_qdrant.training.run import train
from edje_qdrant.training.tower import train_tower

COLOURS = ["red", "lime", "blue", "yellow", "purple", "white", "black", "orange"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    lines = []
    for colour in COLOURS:
        Image.new("RGB", (40, 30), colour).save(folder / f"{colour}.png")
        lines.append({"image": f"{colour}.png", "caption": [f"all {colour}", "Fläche", "одно"]})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "pairs.jsonl"


def recipe(pairs: Path, **tower: object) -> Recipe:
    return Recipe.model_validate({
        "tower": {
            "image_size": 16, "patch_size": 4, "width": 16, "layers": 1, "heads": 2,
            "text_width": 16, "text_layers": 1, "text_heads": 2, "text_length": 8,
            "vocabulary": 120, "steps": 4, "batch_size": 4, "validate_every": 2, **tower,
        },
        "language_model": {"width": 16, "layers": 1, "heads": 2},
        "model": {"num_tokens": 4, "adapter_hidden_size": 16},
        "data": {
            "train": [{"path": str(pairs)}], "validation": {"path": str(pairs)},
            "num_candidates": 4,
        },
        "optimisation": {"steps": 2, "batch_size": 4, "validate_every": 2, "warmup_steps": 0},
    })  # fmt: skip


def run(settings: Recipe, out: Path) -> dict[str, object]:
    return train(settings, out, device="cpu", progress=False)


def test_a_model_from_nothing_is_saved_and_loaded_back(pairs: Path, tmp_path: Path) -> None:
    report = run(recipe(pairs), tmp_path)
    assert {"first R@1", "R@1"} <= report.keys()
    model = EDJEModel.from_pretrained(tmp_path / "model", device="cpu")
    assert model.encoder.name == "tower"
    ids, _ = model.tokenize(["all Red", "Fläche", "одно"])
    assert model.tokenizer.unk_token_id not in ids.tolist()[0] + ids.tolist()[1] + ids.tolist()[2]
    logged = (tmp_path / "tower" / "tower.jsonl").read_text().splitlines()
    assert "contrastive" in json.loads(logged[0])
    assert read_recipe(tmp_path / "recipe.json") == recipe(pairs)


def test_a_stopped_tower_ends_bit_for_bit_as_one_that_was_not(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = loop._State.save

    class StoppedError(Exception):
        """Stand for a kill."""

    def stop(self: loop._State, step: int, *rest: object) -> None:
        save(self, step, *rest)  # type: ignore[arg-type]
        if step == 2:
            raise StoppedError

    run(recipe(pairs), tmp_path / "whole")
    with monkeypatch.context() as stopping:
        stopping.setattr(loop._State, "save", stop)
        with pytest.raises(StoppedError):
            run(recipe(pairs), tmp_path / "parts")
    run(recipe(pairs), tmp_path / "parts")
    whole, parts = (
        torch.load(tmp_path / name / "training.pt", weights_only=True)["module"]
        for name in ("whole", "parts")
    )
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


def test_the_recipes_precision_is_that_of_the_towers_training(pairs: Path, tmp_path: Path) -> None:
    source, weights = open_pairs(pairs), {}
    for precision in ("fp32", "bf16"):
        data = recipe(pairs, steps=1, validate_every=1).model_dump()
        data["optimisation"]["precision"] = precision
        folder = tmp_path / precision
        train_tower(
            Recipe.model_validate(data), [source], source, folder, accelerator_for("cpu"),
            progress=False,
        )  # fmt: skip
        saved = torch.load(folder / "tower.pt", weights_only=True)
        assert saved["config"]["precision"] == precision
        weights[precision] = saved["module"]
    assert {value.dtype for value in weights["bf16"].values()} == {torch.float32}
    assert any(
        not torch.equal(value, weights["bf16"][name]) for name, value in weights["fp32"].items()
    )


@pytest.mark.slow
def test_it_learns_which_image_a_text_names(pairs: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in pairs.read_text().splitlines()]
    names = [{**line, "image": str(pairs.parent / line["image"]), "caption": line["caption"][0]}
             for line in lines]  # fmt: skip
    (tmp_path / "names.jsonl").write_text("\n".join(map(json.dumps, names)))
    report = run(recipe(tmp_path / "names.jsonl", steps=300, batch_size=8), tmp_path / "run")
    assert report["first R@1"] == 1.0


def test_captions_of_several_images_are_true_of_each() -> None:
    captions = [["a flag", "flag: Chad"], ["a flag", "flag: Romania"], ["a dog"]]
    true = captions_true_of(["A flag!", "flag: Romania", "a dog"], captions)
    assert true.tolist() == [[True, True, False], [False, True, False], [False, False, True]]
    assert true.dtype == np.bool_


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        ({"patch_size": 5}, "image_size 16 is not a multiple of patch_size 5"),
        ({"heads": 3}, "width 16 is not a multiple of heads 3"),
        ({"batch_size": 9}, "batch_size 9 is above the 8 images"),
    ],
)
def test_sizes_that_do_not_fit_are_named(
    pairs: Path, tmp_path: Path, tower: dict[str, object], message: str
) -> None:
    data = recipe(pairs).model_dump()
    data["tower"].update(tower)
    with pytest.raises(ConfigError, match=message):
        run(validated(Recipe, data, "recipe.toml"), tmp_path)


def test_a_recipe_has_one_start(pairs: Path) -> None:
    data = recipe(pairs).model_dump()
    for change in ({"tower": None}, {"model": {**data["model"], "encoder": "a/b"}}):
        with pytest.raises(ConfigError, match=r"name one start|needs a section tower"):
            validated(Recipe, {**data, **change}, "recipe.toml")


def test_an_unreadable_image_is_named(pairs: Path, tmp_path: Path) -> None:
    broken = tmp_path / "pairs.jsonl"
    broken.write_text(json.dumps({"image": "gone.png", "caption": "nothing"}) + "\n")
    data = recipe(pairs).model_dump()
    data["data"]["train"] = [{"path": str(broken)}, {"path": str(pairs)}]
    with pytest.raises(ConfigError, match=r"gone\.png.*take it out"):
        run(validated(Recipe, data, "recipe.toml"), tmp_path / "run")
