from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import json_of, refused, run

from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.scenes import SHAPES, draw_scenes
from edje_qdrant.image_to_text.classify import classify, match_texts
from edje_qdrant.model import EDJEModel

WriteImages = Callable[..., list[Path]]
TEXTS = ["a red square", "two dogs", "kites"]


@pytest.fixture
def picture(tmp_path: Path, write_images: WriteImages) -> Path:
    return write_images(tmp_path / "pictures", 1)[0]


def test_match_prints_what_match_texts_finds(
    picture: Path, tiny_folder: Path, tiny_model: EDJEModel
) -> None:
    options = ["match", picture, *TEXTS, "--model", tiny_folder, "--device", "cpu"]
    data = json_of(run(*options, "--num-candidates", 2, "--json"))
    found = match_texts(tiny_model, picture, TEXTS, num_candidates=2)
    assert data["image"] == str(picture)
    assert [m["text"] for m in data["matches"]] == [m.text for m in found]
    assert [m["score"] for m in data["matches"]] == [m.score for m in found]
    assert data["matches"][2]["score"] is None
    for precision in ("float32", "bfloat16"):
        chosen = json_of(run(*options, "--precision", precision, "--json"))
        assert chosen["precision"] == precision
    assert "precision is 'half'" in refused(run(*options, "--precision", "half"))
    long = "a dog " * 80
    again = ["match", picture, long, "a", "--model", tiny_folder, "--device", "cpu"]
    told = {m["text"]: m["truncated"] for m in json_of(run(*again, "--json"))["matches"]}
    assert told == {long: True, "a": False}
    assert "longer than the model reads" in run(*again).stdout.splitlines()[-1]

    lines = run(*options, "--num-candidates", 2).stdout.splitlines()
    assert lines[0].split() == ["rank", "score", "first", "stage", "text"]
    assert [line.split(maxsplit=3)[3] for line in lines[1:]] == [m.text for m in found]
    assert lines[3].split()[1] == "-"
    assert len(run(*options, "--top-k", 1).stdout.splitlines()) == 2
    assert "top_k is 0" in refused(run(*options, "--top-k", 0))
    assert "no-such.png" in refused(run("match", "no-such.png", "a", "--model", tiny_folder))


def test_classify_prints_what_classify_finds(
    picture: Path, tiny_folder: Path, tiny_model: EDJEModel
) -> None:
    options = ["classify", picture, *TEXTS, "--model", tiny_folder, "--device", "cpu"]
    data = json_of(run(*options, "--template", "{}", "--template", "see {}", "--json"))
    found = classify(tiny_model, picture, TEXTS, template=["{}", "see {}"])
    assert [label["label"] for label in data["labels"]] == [label.label for label in found]
    shares = [label["probability"] for label in data["labels"]]
    assert shares == [label.probability for label in found]

    lines = run(*options).stdout.splitlines()
    found = classify(tiny_model, picture, TEXTS)
    assert [line.split(maxsplit=2)[2] for line in lines[1:]] == [label.label for label in found]
    assert lines[1].split()[0] == f"{found[0].probability:.1%}"
    assert "no '{}'" in refused(run(*options, "--template", "a photo"))


def test_the_bundled_model_is_the_default_and_says_what_it_is_not_for(tmp_path: Path) -> None:
    (scene,) = draw_scenes("test", 1, 1)
    draw(scene).save(tmp_path / "scene.png")
    result = run("classify", tmp_path / "scene.png", *SHAPES, "--json")
    best = json_of(result)["labels"][0]["label"]
    assert best in {SHAPES[item.shape] for item in scene.objects}
    assert result.stderr.startswith("note: the model 'demo' knows only drawn shapes")


def test_score_pairs_goes_on_and_keeps_what_is_asked_for(
    tmp_path: Path, picture: Path, tiny_folder: Path
) -> None:
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "scores.jsonl"
    lines: list[dict[str, Any]] = [{"image": picture.name, "caption": TEXTS}]
    lines += [{"image": "gone.png", "caption": "nothing"}]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = [
        "score-pairs", pairs, "--out", out, "--model", tiny_folder, "--device", "cpu",
        "--images", picture.parent,
    ]  # fmt: skip
    data = json_of(run(*options, "--json"))
    assert (data["pairs"], data["scored"], data["failed"], data["kept"]) == (4, 3, 1, None)
    assert data["out"] == str(out)
    assert [Path(failure["path"]).name for failure in data["failures"]] == ["gone.png"]
    scores = [json.loads(line)["score"] for line in out.read_text().splitlines()]

    text = run(*options, "--keep-top", 0.4).stdout.splitlines()
    assert text[0].startswith("4 pairs scored, 4 of them before, 1 without a score, in ")
    assert text[1] == f"1 kept, score {max(scores[:3]):g} or more: {tmp_path}/scores.top0.4.jsonl"
    assert "gone.png: No such file" in text[2]
    kept = (tmp_path / "scores.top0.4.jsonl").read_text().splitlines()
    assert [json.loads(line)["keep"] for line in kept].count(True) == 1

    assert "started with other settings" in refused(run(*options, "--threshold", -1.5))
    assert "started with other settings" in refused(run(*options, "--precision", "bfloat16"))
    options[options.index(out)] = tmp_path / "other.jsonl"
    data = json_of(run(*options, "--threshold", -1000, "--json"))
    assert (data["kept"], data["threshold"]) == (3, -1000)
    assert "not both" in refused(run(*options, "--threshold", 1, "--keep-top", 0.4))
    pairs.write_text('{"image": "a.png"}\n')
    assert 'pairs.jsonl:1: "caption" is missing' in refused(run(*options))


def test_a_bar_is_shown_where_asked_for(tmp_path: Path, picture: Path, tiny_folder: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"image": str(picture), "caption": "a dog"}) + "\n")
    options = ["score-pairs", pairs, "--out", tmp_path / "scores.jsonl", "--model", tiny_folder]
    assert "scoring: 100%" in run(*options, "--progress").stderr
    assert run(*options).stderr == ""
