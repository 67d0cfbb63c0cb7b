from __future__ import annotations

from pathlib import Path

import pytest

from edje_qdrant.errors import ConfigError
from edje_qdrant.training.recipe import read_recipe

EXAMPLES = Path(__file__).parents[2] / "examples" / "recipes"
TEXT = """
[model]
encoder = "siglip"

[[data.train]]
path = "a.jsonl"
weight = 2.0

[data.validation]
path = "b.json"
split = "val"

[optimisation]
epochs = 2
batch_size = 8
"""


def write(folder: Path, text: str = TEXT, name: str = "recipe.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_recipe_is_read_and_changed(tmp_path):
    recipe = read_recipe(write(tmp_path), {"optimisation.peak_lr": 1e-5, "objectives.words": 0})
    assert recipe.data.train[0].weight == 2.0
    assert recipe.optimisation.peak_lr == 1e-5
    assert recipe.objectives.objectives().words == 0.0
    assert recipe.model.num_tokens == 64


def test_what_a_run_saves_is_the_recipe_again(tmp_path):
    recipe = read_recipe(write(tmp_path))
    saved = write(tmp_path, recipe.model_dump_json(), "recipe.json")
    assert read_recipe(saved) == recipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.tokens": 3}, "model.tokens: Extra inputs"),
        ({"model.num_tokens": 0}, "model.num_tokens: Input should be greater"),
        ({"model.start_from": "x"}, "recipe: Value error, name one start"),
        ({"data.train": []}, "data.train: List should have at least 1"),
        ({"optimisation.steps": 5}, "optimisation: Value error, give steps or epochs"),
        ({"data.grouped_batches": 4}, "data: Value error, grouped_batches needs"),
        ({"optimisation.schedule": "linear"}, "optimisation.schedule"),
        ({"objectives.distillation": 1.0}, "objectives: Value error, distillation needs a teacher"),
        ({"objectives.masked_share": 2}, "objectives: Value error, .*masked_share"),
        ({"seed": -1}, "seed: Input should be greater"),
        ({"seed.x": 1}, "seed: Input should be a valid integer|'seed.x' names no setting"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path, changes, message):
    path = write(tmp_path)
    if "seed.x" in changes:
        path = write(tmp_path, "seed = 3\n" + TEXT)
    with pytest.raises(ConfigError, match=message) as caught:
        read_recipe(path, changes)
    assert str(path) in str(caught.value)


def test_a_missing_section_and_a_file_that_is_no_toml(tmp_path):
    with pytest.raises(ConfigError, match=r"recipe\.toml: data: Field required"):
        read_recipe(write(tmp_path, "[model]\nencoder = 'x'\n[optimisation]\nsteps = 1\n"))
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        read_recipe(write(tmp_path, "[model"))
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        read_recipe(tmp_path / "none.toml")


def test_epochs_become_steps_of_the_whole_batch(tmp_path):
    recipe = read_recipe(write(tmp_path), {"optimisation.accumulate": 2})
    loop = recipe.optimisation.loop(rows_per_epoch=320, processes=4, seed=7)
    assert (loop.steps_per_epoch, loop.steps, loop.seed) == (5, 10, 7)


def test_the_examples_say_what_the_paper_says():
    own = {"demo", *(p.stem for p in EXAMPLES.glob("emoji*.toml"))}  # other data than the paper's
    recipes = {p.stem: read_recipe(p) for p in EXAMPLES.glob("*.toml") if p.stem not in own}
    assert recipes.keys() == {
        "pretraining", "finetuning-coco", "finetuning-flickr", "distillation",
    }  # fmt: skip
    for name, recipe in recipes.items():
        o, w = recipe.optimisation, recipe.objectives.objectives()
        assert (o.weight_decay, o.first_lr, o.final_lr, o.decay) == (0.05, 1e-6, 1e-6, 0.9)
        assert (o.schedule, o.batch_size) == ("epochs", 32)
        tuned = name.startswith("finetuning")
        assert o.peak_lr == (2e-5 if tuned else 3e-4)
        weights = (w.matching, w.words, w.recovery, w.distillation)
        if name == "pretraining":
            assert weights == (1.0, 1.0, 1.0, 0.0)
            assert recipe.model.adapter_hidden_size == 8192
        else:
            assert weights == ((1.0, 0.0, 0.0, 0.0) if tuned else (0.0, 0.0, 0.0, 1.0))


def test_the_examples_say_what_they_need():
    for path in EXAMPLES.glob("*.toml"):
        head = path.read_text(encoding="utf-8").partition("seed = ")[0]
        if path.stem.startswith(("demo", "emoji")):  # drawn here; a page of its own
            continue
        assert "# It needs, below the folder in which it is started" in head
        recipe = read_recipe(path)
        for file in [*recipe.data.train, recipe.data.validation]:
            assert str(file.path).partition("{")[0].split("/")[1] in head.lower()
        if recipe.model.start_from:
            assert recipe.model.start_from in head
        assert "https://" in head


def test_the_recipe_of_emoji_trains_tower_and_joint_encoder_from_nothing():
    recipe = read_recipe(EXAMPLES / "emoji.toml")
    assert recipe.tower is not None
    assert recipe.language_model is not None


def test_the_wide_recipe_takes_a_trained_tower_and_begins_with_a_pretrained_joint_encoder():
    wide = read_recipe(EXAMPLES / "emoji-wide.toml")
    assert wide.tower is None
    assert wide.language_model is None
    assert wide.model.encoder == "runs/emoji/model"  # what emoji.toml trains
    assert wide.model.language_model == "minilm/all-MiniLM-L6-v2"
    assert wide.model.num_tokens == 64
    continued = read_recipe(EXAMPLES / "emoji-wide-continued.toml")
    assert continued.model.start_from == "runs/emoji-wide/model"
    assert continued.data.train == wide.data.train
