from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import json_of, refused, run

from edje_qdrant.cli.eval import gather_numbers
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.model import EDJEModel

WriteImages = Callable[..., list[Path]]


@pytest.fixture(scope="module")
def karpathy(tmp_path_factory: pytest.TempPathFactory, write_images: WriteImages) -> Path:
    """A file as Karpathy's for COCO: 24 images, of which 12 are the test split."""
    folder = tmp_path_factory.mktemp("coco")
    paths = write_images(folder / "images" / "val2014", 24)
    (folder / "images" / "val2014" / "broken.jpg").write_bytes(b"no image")
    items = [
        {
            "filepath": "val2014",
            "filename": name,
            "imgid": number,
            "split": "test" if number % 2 == 0 else "restval",
            "sentences": [
                {"raw": f"Image {number}, view {view}.", "tokens": [], "sentid": 5 * number}
                for view in range(5)
            ],
        }
        for number, name in enumerate([*(p.name for p in paths), "broken.jpg"])
    ]
    path = folder / "dataset_coco.json"
    path.write_text(json.dumps({"dataset": "coco", "images": items}))
    return path


@pytest.mark.slow
def test_a_karpathy_file_runs_end_to_end(tmp_path: Path, karpathy: Path, tiny_folder: Path) -> None:
    options = [
        karpathy, "--images", karpathy.parent / "images", "--model", tiny_folder,
        "--out", tmp_path / "out", "--num-candidates", 2, 5, 10,
    ]  # fmt: skip
    data = json_of(run("eval", *options, "--json"))
    assert (data["data"], data["split"], data["protocol"]) == (str(karpathy), "test", "karpathy")
    assert (data["pictures"], data["captions"], data["lost_captions"]) == (12, 60, 5)
    assert [Path(failure["path"]).name for failure in data["failed"]] == ["broken.jpg"]
    systems = data["systems"]
    assert [(s["direction"], s["num_candidates"]) for s in systems] == [
        (direction, number) for direction in ("t2i", "i2t") for number in (2, 5, 10)
    ]
    for system in systems:
        t2i = system["direction"] == "t2i"
        assert (system["queries"], system["pool"]) == ((60, 12) if t2i else (12, 60))
        assert (system["ms_per_query"] is not None) == t2i
        assert system["bytes_per_picture"] == 4 * 16 * 2
        assert system["model"] == str(tiny_folder)
        for stage in ("first_stage", "reranked"):
            found = system[stage]
            assert 0 <= found["R@1"] <= found["R@5"] <= found["R@10"] <= found["R@20"] <= 1
            assert found["R@1"] <= found["MRR@20"] <= found["R@20"]
    # Twelve images: all are among the first twenty, in any order.
    assert systems[0]["reranked"]["R@20"] == 1
    files = data["files"]
    assert json.loads(Path(files["json"]).read_text()) == data
    assert {Path(p).name for p in files["plots"]} == {"recall.png", "candidates.png", "cost.png"}
    for path in [*files["cases"], *files["sheets"], *files["plots"]]:
        assert Path(path).stat().st_size > 0
    lines = (tmp_path / "out" / "cases-t2i.jsonl").read_text().splitlines()
    assert len(lines) == 60

    text = run("eval", *options).stdout
    assert "Text to image: 60 captions asked of 12 images" in text
    assert "Image to text: 12 images asked of 60 captions" in text
    assert "10 reranked" in text
    assert f"{systems[2]['reranked']['R@1']:.1%}" in text

    fast = json_of(run("eval", *options, "--in-memory", "--json"))
    assert fast["in_memory"] is True
    for ours, theirs in zip(systems, fast["systems"], strict=True):
        assert ours["first_stage"] == theirs["first_stage"]
        assert ours["reranked"] == theirs["reranked"]


def test_the_full_pool_is_every_split(tmp_path: Path, karpathy: Path, tiny_folder: Path) -> None:
    data = json_of(
        run(
            "eval", karpathy, "--images", karpathy.parent / "images", "--model", tiny_folder,
            "--out", tmp_path, "--protocol", "full", "--direction", "i2t", "--in-memory", "--json",
        )
    )  # fmt: skip
    (system,) = data["systems"]
    assert (system["queries"], system["pool"], system["num_candidates"]) == (24, 120, 50)
    assert data["split"] is None


def test_the_users_collection_is_measured_with_the_model_that_wrote_it(
    tmp_path: Path, karpathy: Path, tiny_model: EDJEModel
) -> None:
    ImageCollection.create(tmp_path / "index", "photos", tiny_model.contract()).close()
    data = json_of(
        run(
            "eval", karpathy, "--images", karpathy.parent / "images", "--index", tmp_path / "index",
            "--collection", "photos", "--out", tmp_path / "out", "--direction", "t2i",
            "--limit", 6, "--split", "train", "--json",
        )
    )  # fmt: skip
    assert (data["pictures"], data["split"]) == (6, "train")
    assert data["systems"][0]["model"] == tiny_model.name_or_path
    assert not (tmp_path / "out" / "collections").exists()
    with ImageCollection.open(tmp_path / "index", "photos") as collection:
        assert collection.count() == 6


def test_two_models_side_by_side(
    tmp_path: Path, karpathy: Path, tiny_folder: Path, other_model: EDJEModel
) -> None:
    other_model.save_pretrained(tmp_path / "other")
    models = ["--model", tiny_folder, "--model", tmp_path / "other"]
    place = [karpathy, "--images", karpathy.parent / "images", "--out", tmp_path / "out"]
    data = json_of(run("eval", *place, *models, "--direction", "t2i", "--in-memory", "--json"))
    first, second = data["systems"]
    assert first["against"] == []
    (against,) = second["against"]
    assert against["model"] == str(tiny_folder)
    gap = second["reranked"]["R@1"] - first["reranked"]["R@1"]
    assert against["R@1"]["mean"] == pytest.approx(gap, abs=2e-5)
    assert "compare several" in refused(run("eval", *place, *models, "--index", tmp_path / "i"))


def test_codecs_side_by_side(tmp_path: Path, karpathy: Path, tiny_folder: Path) -> None:
    place = [karpathy, "--images", karpathy.parent / "images", "--out", tmp_path / "out"]
    options = ["--model", tiny_folder, "--direction", "t2i", "--in-memory", "--json"]
    options += ["--precision", "bfloat16"]
    data = json_of(run("eval", *place, *options, "--codec", "float16", "--codec", "int8"))
    exact, smaller = data["systems"]
    assert smaller["model"] == f"{tiny_folder} int8"
    assert (exact["bytes_per_picture"], smaller["bytes_per_picture"]) == (4 * 32, 4 * 18)
    assert smaller["against"][0]["model"] == f"{tiny_folder} float16"
    assert {system["precision"] for system in data["systems"]} == {"bfloat16"}
    made = refused(run("eval", *place, "--codec", "int8", "--index", tmp_path / "i"))
    assert "--codec applies to collections that are created here" in made


def test_scenes_are_drawn_and_measured(tmp_path: Path) -> None:
    options = ["scenes", "--limit", 12, "--out", tmp_path, "--in-memory", "--num-candidates=10"]
    result = run("eval", *options, "--json")
    data = json_of(result)
    assert result.stderr == ""  # the bundled model is the right one here
    assert (data["data"], data["pictures"], data["captions"]) == ("scenes", 12, 12)
    assert data["systems"][0]["reranked"]["R@10"] >= 0.75
    assert (tmp_path / "scenes.jsonl").is_file()
    drawn = run("eval", "scenes", "--images", tmp_path, "--out", tmp_path)
    assert "--images does not apply" in refused(drawn)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['{"image": "a.png", "caption": "x"}', '{"image": "b.png"}'], ':2: "caption" is missing'),
        (['{"image": "a.png", "caption": 3}'], ':1: "caption" must be text or a list'),
        (['{"image": "a.png", "caption": "x"}', "", "{"], ":3: not JSON"),
        (['{"image": "a.png", "caption": "x"}', '{"image": "a.png", "caption": "!"}'], ":2: the "),
        (['{"image": "gone.png", "caption": "x"}'], "--images"),
        ([], "no annotations"),
    ],
)
def test_wrong_annotations_are_refused_with_file_and_line(
    tmp_path: Path, tiny_folder: Path, lines: list[str], words: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines))
    line = refused(run("eval", path, "--model", tiny_folder, "--out", tmp_path / "out"))
    assert words in line
    assert str(path) in line or words == "--images"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "DATA"),
        (["/nowhere.json"], "cannot read the annotations"),
        (["DATA", "--num-candidates", "many"], "--num-candidates takes whole numbers"),
        (["DATA", "--num-candidates", "5", "0"], "num_candidates holds 0"),
        (["DATA", "--num-candidates", "-5"], "--num-candidates takes whole numbers"),
        (["DATA", "--num-candidates"], "--num-candidates"),
        (["DATA", "--direction", "i2i"], "direction is 'i2i'"),
        (["DATA", "--protocol", "x"], "protocol is 'x'"),
        (["DATA", "--split", "test"], "they have none"),
        (["DATA", "--limit", "0"], "limit is 0"),
        (["DATA", "--index", "a", "--url", "http://b"], "not both"),
        (["DATA", "--model", "/nowhere"], "/nowhere"),
    ],
)
def test_refusals_take_one_line(
    tmp_path: Path,
    tiny_folder: Path,
    write_images: WriteImages,
    arguments: list[str],
    words: str,
) -> None:
    write_images(tmp_path, 1)
    data = tmp_path / "data.jsonl"
    data.write_text('{"image": "picture-0000.png", "caption": "x"}')
    place = ["--out", tmp_path / "out"]
    if "--model" not in arguments and "--index" not in arguments:
        place += ["--model", tiny_folder]
    assert words in refused(run("eval", *place, *(data if a == "DATA" else a for a in arguments)))
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


@pytest.mark.parametrize(
    ("given", "gathered"),
    [
        ("D --num-candidates 5 10 20", "--num-candidates=5,10,20 D"),
        ("D --num-candidates 5 10 --json", "--num-candidates=5,10 D --json"),
        ("--num-candidates 5 10 D", "--num-candidates=5,10 D"),
        ("D --num-candidates 5,10,20", "--num-candidates=5,10,20 D"),
        ("D --num-candidates=5 10", "--num-candidates=5 D 10"),
        ("D --num-candidates 5 --num-candidates 10", "--num-candidates=5,10 D"),
        ("D --num-candidates many", "--num-candidates=many D"),
        ("D --num-candidates --json", "D --num-candidates --json"),
        ("D --num-candidates", "D --num-candidates"),
        ("--out 5 -- --num-candidates 5", "--out 5 -- --num-candidates 5"),
        ("D --json", "D --json"),
    ],
)
def test_numbers_are_gathered_wherever_they_stand(given: str, gathered: str) -> None:
    assert " ".join(gather_numbers(given.split())) == gathered


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from edje_qdrant.cli.app import main\n"
        "try:\n"
        "    main(['eval', '--help'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'qdrant_client', 'qdrant_edge', 'numpy', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    assert "--num-candidates N..." in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
