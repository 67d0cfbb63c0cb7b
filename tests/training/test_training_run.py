from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_edje import build_tiny_model
from transformers import BertConfig, BertForMaskedLM, XLMRobertaTokenizer

from edje_qdrant import EDJEModel
from edje_qdrant.data.pairs import DatasetPairs
from edje_qdrant.errors import CheckpointError, ConfigError
from edje_qdrant.training import loop
from edje_qdrant.training.build import build_model
from edje_qdrant.training.recipe import Recipe, read_recipe
from edje_qdrant.training.run import train

COLOURS = ["red", "lime", "blue", "yellow", "purple", "white", "black", "orange"]


class StoppedError(Exception):
    """Stand for a kill."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders a SigLIP and a language model are loaded from, and images with captions."""
    folder = tmp_path_factory.mktemp("parts")
    model = build_tiny_model(dropout=0.1)
    model.encoder.save(folder / "siglip")
    model.encoder.siglip.save_pretrained(folder / "siglip")
    for name, dropout in (("bert", 0.1), ("bert-without-dropout", 0.0)):
        language_model = build_tiny_model(5, dropout=dropout).joint_encoder.language_model
        language_model.resize_token_embeddings(language_model.config.vocab_size - 1)
        language_model.save_pretrained(folder / name)
        model.encoder.tokenizer.save_pretrained(folder / name)
    lines = []
    for number, colour in enumerate(COLOURS):
        image = Image.new("RGB", (40, 40), colour)
        image.paste(COLOURS[(number + 3) % 8], (0, 0, 20, 10 + 4 * number))
        image.save(folder / f"{colour}.png")
        captions = [f"{colour} here", f"it is {colour}"]
        lines.append(json.dumps({"image": f"{colour}.png", "caption": captions}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder


def recipe(parts: Path, **changes: object) -> Recipe:
    data = {
        "model": {
            "encoder": str(parts / "siglip"), "language_model": str(parts / "bert"),
            "num_tokens": 4, "adapter_hidden_size": 32,
        },
        "data": {
            "train": [{"path": str(parts / "pairs.jsonl")}],
            "validation": {"path": str(parts / "pairs.jsonl")},
            "num_candidates": 8,
        },
        "optimisation": {
            "steps": 6, "batch_size": 4, "validate_every": 2, "warmup_steps": 2, "peak_lr": 1e-3,
        },
    }  # fmt: skip
    for name, value in changes.items():
        section, setting = name.split("__")
        data.setdefault(section, {})[setting] = value
    return Recipe.model_validate(data)


def run(config: Recipe, out: Path) -> dict:
    return train(config, out, device="cpu", progress=False)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "training.pt", weights_only=True)["module"]


def test_it_trains_saves_and_loads_back(parts, tmp_path):
    report = run(recipe(parts), tmp_path)
    assert {"first R@1", "R@1", "step", "seconds"} <= report.keys()
    assert (report["pictures"], report["unreadable"]) == (8, [])
    model = EDJEModel.from_pretrained(tmp_path / "model", device="cpu")
    assert model.config.num_tokens == 4
    assert read_recipe(tmp_path / "recipe.json") == recipe(parts)
    logged = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert {"words", "matching", "recovery"} <= logged[0].keys()


@pytest.mark.parametrize("vision", ["live", "cached", "grouped"])
def test_a_stopped_run_ends_bit_for_bit_as_one_that_was_not(parts, tmp_path, monkeypatch, vision):
    changes = {"data__cache_vision": str(tmp_path / "cache")} if vision != "live" else {}
    if vision == "grouped":
        changes["data__grouped_batches"] = 3
    config = recipe(parts, **changes, optimisation__accumulate=2, objectives__hard_from=0.5)
    run(config, tmp_path / "whole")
    save = loop._State.save

    def stop(self, step, *rest):
        save(self, step, *rest)
        if step == 4:
            raise StoppedError

    with monkeypatch.context() as stopping:
        stopping.setattr(loop._State, "save", stop)
        with pytest.raises(StoppedError):
            run(config, tmp_path / "parts")
    run(config, tmp_path / "parts")
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    one, two = (EDJEModel.from_pretrained(tmp_path / p / "model") for p in ("whole", "parts"))
    assert one.contract().adapter_hash == two.contract().adapter_hash


@pytest.mark.parametrize(
    ("steps", "loss", "recall"),
    [(60, 0.3, 0.3), pytest.param(300, 0.05, 0.9, marks=pytest.mark.slow)],
)
def test_it_learns_a_tiny_set_by_heart(parts, tmp_path, steps, loss, recall):
    config = recipe(
        parts,
        model__language_model=str(parts / "bert-without-dropout"),
        data__cache_vision=str(tmp_path / "cache"),
        objectives__words=0.0,
        objectives__recovery=0.0,
        objectives__num_negatives=5,
        optimisation__steps=steps,
        optimisation__batch_size=8,
        optimisation__peak_lr=5e-3,
        optimisation__schedule="cosine",
        optimisation__validate_every=steps // 3,
        optimisation__precision="fp32",
    )
    report = run(config, tmp_path / "run")
    logged = [json.loads(x) for x in (tmp_path / "run" / "training.jsonl").read_text().splitlines()]
    matching = [line["matching"] for line in logged if "matching" in line]
    assert matching[0] > 0.5
    assert matching[-1] < loss
    assert report["first R@1"] < 0.3
    assert report["R@1"] > recall


def test_broken_pictures_are_skipped_and_counted(parts, tmp_path):
    lines = (parts / "pairs.jsonl").read_text() + '\n{"image": "none.png", "caption": "nothing"}'
    (parts / "broken.jsonl").write_text(lines)
    broken = [{"path": str(parts / "broken.jsonl")}]
    for number, cache in enumerate([str(tmp_path / "cache"), None]):
        config = recipe(
            parts, data__train=broken, data__cache_vision=cache, optimisation__batch_size=8
        )
        report = run(config, tmp_path / str(number))
        assert [Path(f["path"]).name for f in report["unreadable"]] == ["none.png"]


def test_fine_tuning_goes_on_with_a_model_and_matches_alone(parts, tmp_path):
    run(recipe(parts), tmp_path / "first")
    config = recipe(
        parts,
        model__encoder=None,
        model__start_from=str(tmp_path / "first" / "model"),
        objectives__words=0.0,
        objectives__recovery=0.0,
    )
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"language_model": "unused"})}
    )
    run(config, tmp_path / "second")
    line = json.loads((tmp_path / "second" / "training.jsonl").read_text().splitlines()[0])
    assert "matching" in line
    assert not {"words", "recovery"} & line.keys()


def test_a_compressed_model_learns_from_a_local_teacher(parts, tmp_path):
    run(recipe(parts, model__adapter="local"), tmp_path / "local")
    teacher = str(tmp_path / "local" / "model")
    config = recipe(
        parts,
        model__joint_encoder_from=teacher,
        objectives__teacher=teacher,
        objectives__distillation=1.0,
        objectives__matching=0.0,
        objectives__words=0.0,
        objectives__recovery=0.0,
        model__freeze_language_model=True,
    )
    run(config, tmp_path / "student")
    student = EDJEModel.from_pretrained(tmp_path / "student" / "model")
    theirs = EDJEModel.from_pretrained(teacher)
    assert (student.config.num_tokens, theirs.config.num_tokens) == (4, 16)
    words = "joint_encoder.language_model.bert.embeddings.word_embeddings.weight"
    assert torch.equal(student.state_dict()[words], theirs.state_dict()[words])


def test_a_data_set_object_is_trained_on(parts, tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict(
        {
            "picture": [str(parts / f"{colour}.png") for colour in COLOURS],
            "said": [[f"{colour} it is", "a colour"] for colour in COLOURS],
        }
    ).cast_column("picture", datasets.Image())
    pairs = DatasetPairs(data, image_column="picture", caption_column="said")
    report = train(recipe(parts), tmp_path, sources=[pairs], device="cpu", progress=False)
    assert report["pictures"] == 8
    with pytest.raises(ConfigError, match="one source for each"):
        train(recipe(parts), tmp_path, sources=[pairs] * 2, device="cpu", progress=False)


def test_a_multilingual_language_model_is_trained_saved_and_loaded(parts, tmp_path):
    """Multilingual MiniLM is a BERT behind XLM-R's tokenizer."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁it", "▁is", "▁here"]
    pieces += [f"▁{colour}" for colour in COLOURS] + list("abcdefghijklmnopqrstuvwxyzäöü")
    tokenizer = XLMRobertaTokenizer(vocab=[(piece, -float(n)) for n, piece in enumerate(pieces)])
    tokenizer.save_pretrained(tmp_path / "lm")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=40, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(tmp_path / "lm")
    run(recipe(parts, model__language_model=str(tmp_path / "lm")), tmp_path / "out")
    model = EDJEModel.from_pretrained(tmp_path / "out" / "model")
    ids, mask = model.tokenize(["it is blue", "äöü"])
    tokens = model.encode_images([Image.open(parts / "blue.png")] * 2).tokens
    assert ids[0, 0] == tokenizer.cls_token_id
    assert ids[1, mask[1].sum() - 1] == tokenizer.sep_token_id
    assert len(set(model.score_pairs(["it is blue", "äöü"], tokens).tolist())) == 2


def test_another_recipes_folder_is_refused(parts, tmp_path):
    run(recipe(parts), tmp_path)
    with pytest.raises(CheckpointError, match="another recipe"):
        run(recipe(parts, optimisation__steps=9), tmp_path)


def test_a_joint_encoder_of_another_size_is_refused(parts, tmp_path):
    with pytest.raises(ConfigError, match="does not fit"):
        run(recipe(parts, model__joint_encoder_from="demo"), tmp_path)


@pytest.mark.slow
def test_two_processes_train_from_files(parts, tmp_path):
    """As a user starts them; the second process opens what the first one encoded."""
    config = recipe(parts, data__cache_vision=str(tmp_path / "cache"))
    (tmp_path / "recipe.json").write_text(config.model_dump_json())
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", "0", "--module",
        "edje_qdrant", "train", "--recipe", str(tmp_path / "recipe.json"),
        "--out", str(tmp_path / "out"), "--device", "cpu", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 1
    assert json.loads(lines[0])["model"] == str(tmp_path / "out" / "model")
    assert EDJEModel.from_pretrained(tmp_path / "out" / "model").config.num_tokens == 4


def test_the_encoder_of_a_model_of_this_package_is_taken(parts, tmp_path):
    model = EDJEModel.from_pretrained("demo", device="cpu")
    model.save_pretrained(tmp_path / "trained")
    section = recipe(parts).model.model_copy(update={"encoder": str(tmp_path / "trained")})
    built = build_model(section)
    assert built.encoder.revision == model.encoder.revision
    assert built.config.num_tokens == 4
