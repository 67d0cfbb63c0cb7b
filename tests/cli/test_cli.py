from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import child, json_of, refused, run
from rounding import float32_slack

from edje_qdrant import __version__
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.checkpoints.published import published_names
from edje_qdrant.search.retriever import TwoStageRetriever

WriteImages = Callable[..., list[Path]]
COMMANDS = [
    "attach", "calibrate", "classify", "compact", "convert", "copy", "delete", "demo", "detach",
    "duplicates",
    "eval", "export", "export-onnx", "fit-codec", "import", "info", "ingest", "match", "mcp",
    "migrate",
    "plan", "repair", "score-pairs", "search", "serve", "text-fields", "train",
    "transcode", "update", "verify",
]  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, write_images: WriteImages) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_images(folder, 12)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, pictures: Path, tiny_folder: Path) -> str:
    """A folder with an ingested collection; nothing may be written to it."""
    folder = str(tmp_path_factory.mktemp("cli") / "index")
    assert run("ingest", pictures, "--index", folder, "--model", tiny_folder).exit_code == 0
    return folder


def test_ingest_search_and_info_as_json(
    tmp_path: Path, pictures: Path, tiny_folder: Path, tiny_model: EDJEModel
) -> None:
    place = ["--index", tmp_path / "index"]
    made = json_of(run("ingest", pictures, *place, "--model", tiny_folder, "--json"))
    assert (made["added"], made["skipped"], made["points"]) == (12, 0, 12)
    assert [Path(failure["path"]).name for failure in made["failed"]] == ["broken.png"]
    assert all(failure["reason"] for failure in made["failed"])
    assert made["images_per_second"] > 0
    assert made["seconds"] > 0

    again = json_of(run("ingest", pictures, *place, "--json"))  # the contract names the model
    assert (again["added"], again["skipped"], len(again["failed"])) == (0, 12, 1)

    found = json_of(run("search", "a red square", *place, "--top-k", 3, "--json"))
    assert found["query"] == "a red square"
    assert found["degraded"] is False
    assert set(found["timings_ms"]) == {"encode", "retrieve", "fetch", "rerank", "total"}
    with TwoStageRetriever.open(tmp_path / "index", model=tiny_model) as retriever:
        expected = retriever.search("a red square", top_k=3)
    slack = float32_slack([hit.score for hit in expected])
    for hit, ours in zip(found["hits"], expected, strict=True):
        assert hit == {
            "image_id": ours.image_id,
            "score": pytest.approx(ours.score, abs=slack),
            "rank": ours.rank,
            "retrieval_score": pytest.approx(ours.retrieval_score, abs=float32_slack(1)),
            "retrieval_rank": ours.retrieval_rank,
            "payload": dict(ours.payload),
            "probability": None,
            "match": None,
            "fusion_score": None,
            "group": None,
            "duplicates": [],
        }

    about = json_of(run("info", *place, "--json"))
    assert about["points"] == 12
    assert about["engine"] == "edge"
    assert about["name"] == "images"
    assert about["location"] == str(tmp_path / "index")
    assert about["bytes_per_image"] == 4 * 16 * 2
    assert about["contract"]["num_tokens"] == 4
    assert about["contract"]["model"] == str(tiny_folder.resolve())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--devices", "cpu,nowhere"], "no device 'nowhere'"),
        (["--devices", "cpu,cpu", "--processes", "1"], "2 devices but 1 processes"),
        (["--devices", "cpu", "--device", "cpu"], "--device or --devices"),
        (["--processes", "-1"], "--processes"),
    ],
)
def test_processes_that_cannot_be_are_refused_before_anything_is_made(
    tmp_path: Path, pictures: Path, options: list[str], words: str
) -> None:
    result = run("ingest", pictures, "--index", tmp_path / "index", *options)
    assert (result.exit_code, words in result.stderr) == (2, True)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (["--devices", "cpu, cpu"], (0, ["cpu", "cpu"])),
        (["--processes", "2"], (2, None)),
        ([], (0, None)),
    ],
)
def test_an_ingest_has_the_processes_that_are_asked_for(
    tmp_path: Path, pictures: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch,
    options: list[str], asked: tuple[int, list[str] | None],
) -> None:  # fmt: skip
    """They are started in `tests/ingest/test_process_pool.py`."""
    given: list[Any] = []

    def noted(*args: Any, processes: int, devices: list[str] | None, **more: Any) -> Any:
        given.append((processes, devices))
        return ingest_images(*args, **more)

    monkeypatch.setattr("edje_qdrant.ingest.ingest.ingest_images", noted)
    place = ["--index", tmp_path / "index", "--model", tiny_folder]
    made = json_of(run("ingest", pictures, *place, *options, "--json"))
    assert (made["added"], made["skipped"], len(made["failed"])) == (12, 0, 1)
    assert given == [asked]


@pytest.mark.slow
def test_ingest_in_a_process_of_its_own(tmp_path: Path, pictures: Path, tiny_folder: Path) -> None:
    place = ["--index", tmp_path / "index", "--model", tiny_folder]
    made = json_of(run("ingest", pictures, *place, "--devices", "cpu", "--json"))
    assert (made["added"], made["skipped"], len(made["failed"])) == (12, 0, 1)


def test_a_codec_is_chosen_once(tmp_path: Path, pictures: Path, tiny_folder: Path) -> None:
    place = ["--index", tmp_path / "index"]
    made = ["ingest", pictures, *place, "--model", tiny_folder, "--json"]
    json_of(run(*made, "--codec", "int8"))
    json_of(run(*made))  # whatever it is
    about = json_of(run("info", *place, "--json"))
    assert about["contract"]["codec"] == "int8"
    assert about["bytes_per_image"] == 4 * (16 + 2)
    assert len(json_of(run("search", "a cat", *place, "--json"))["hits"]) == 10
    other = run(*made, "--codec", "int4")
    assert (other.exit_code, "as int8, not int4" in other.stderr) == (2, True)
    unknown = run("ingest", pictures, "--index", tmp_path / "new", "--codec", "zip")
    assert (unknown.exit_code, "known: float16, int4, int8" in unknown.stderr) == (2, True)
    assert not (tmp_path / "new").exists()


def test_what_a_person_reads(index: str, pictures: Path, tmp_path: Path) -> None:
    result = run("search", "a red square", "--index", index, "--top-k", 12)
    head, *rows, timings = result.stdout.splitlines()
    assert head.split() == ["rank", "score", "first", "stage", "image"]
    assert len(rows) == 12
    arrows = set()
    for rank, row in enumerate(rows, start=1):
        place, _, before, arrow, path = row.split()
        assert int(place) == rank
        assert arrow == ("↑" if int(before) > rank else "↓" if int(before) < rank else "=")
        assert Path(path).parent == pictures
        arrows.add(arrow)
    assert {"↑", "↓"} <= arrows
    assert "rerank" in timings
    assert result.stderr == ""

    text = run("ingest", pictures, "--index", index).stdout
    assert text.startswith("0 added, 12 there already, 1 failed")
    lines = [line.strip() for line in text.splitlines()]
    reason = lines.index("1 x not an image, or in a format that cannot be read here")
    assert lines[reason + 1] == str(pictures / "broken.png")
    manifest = tmp_path / "list.jsonl"
    manifest.write_text(json.dumps({"path": str(pictures / path), "album": "a"}))
    text = run("ingest", manifest, "--index", index).stdout
    assert text.startswith("0 added, 1 with new fields, 0 there already, 0 failed")
    assert json_of(run("ingest", manifest, "--index", index, "--json"))["updated"] == 0

    text = run("info", "--index", index).stdout
    assert "4 x 16, float16" in text


def test_long_lists_of_failures_are_cut(tmp_path: Path, tiny_folder: Path) -> None:
    for number in range(23):
        (tmp_path / f"{number:02d}.png").write_bytes(b"x")
    result = run("ingest", tmp_path, "--index", tmp_path / "index", "--model", tiny_folder)
    assert result.exit_code == 1
    assert "  23 x not an image" in result.stdout
    shown = [line.strip() for line in result.stdout.splitlines() if line.endswith(".png")]
    assert shown == [str(tmp_path / f"{number:02d}.png") for number in range(5)]
    assert "and 18 more, all listed by --json" in result.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_file_name_that_is_no_text_can_be_printed(
    tmp_path: Path, tiny_folder: Path, write_images: WriteImages
) -> None:
    (picture,) = write_images(tmp_path / "pictures", 1)
    picture.rename(picture.with_name("caf\udce9.png"))
    place = [tmp_path / "pictures", "--index", tmp_path / "index", "--model", tiny_folder]
    assert "caf\\xe9.png\n" in run("ingest", *place).stdout
    (failed,) = json.loads(run("ingest", *place, "--json").stdout)["failed"]
    assert failed["path"].endswith("caf\udce9.png")


def test_candidates_follow_top_k(index: str) -> None:
    assert (
        len(json_of(run("search", "x", "--index", index, "--top-k", 200, "--json"))["hits"]) == 12
    )
    hits = json_of(
        run("search", "x", "--index", index, "--top-k", 4, "--num-candidates", 4, "--json")
    )["hits"]
    assert sorted(hit["retrieval_rank"] for hit in hits) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "x"], "--index FOLDER"),
        (["search", "x", "--index", "a", "--url", "http://b"], "not both"),
        (["search", "x", "--index", "http://b"], "--url"),
        (["search", "x", "--index", ""], "folder"),
        (["search", "x", "--url", "localhost:6333"], "http://"),
        (["search", "x", "--index", "/nowhere"], "no collection 'images'"),
        (["search", "x", "--index", "INDEX", "--collection", "b"], "it holds images"),
        (["search", "x", "--index", "INDEX", "--collection", "../b"], "collection name"),
        (["search", "  ", "--index", "INDEX"], "no word"),
        (["search", "x", "--index", "INDEX", "--top-k", "0"], "top_k is 0"),
        (
            ["search", "x", "--index", "INDEX", "--num-candidates", "3", "--top-k", "4"],
            "num_candidates",
        ),
        (["search", "x", "--index", "INDEX", "--device", "abacus"], "--device abacus"),
        (["search", "x", "--index", "INDEX", "--model", "."], "not a model"),
        (["search", "x", "--index", "INDEX", "--top-k", "many"], "--top-k"),
        (["search"], "TEXT"),
        (["ingest", "/nowhere", "--index", "NEW"], "does not exist"),
        (["ingest", "EMPTY", "--index", "NEW"], "holds no image"),
        (["ingest", "EMPTY", "--index", "NEW", "--workers", "x"], "--workers"),
        (
            ["convert", "/nowhere.pth", "--out", "NEW", "--siglip", "a", "--language-model", "b"],
            "/nowhere",
        ),
        (["train", "--out", "NEW", "--recipe", "cake"], "'cake'"),
        (["train", "--out", "NEW", "--steps-scale", "0"], "scale"),
        (["dmeo"], "demo"),
        (["--verbose"], "--verbose"),
    ],
)
def test_refusals_take_one_line(
    tmp_path: Path, index: str, arguments: list[str], words: str
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"INDEX": index, "EMPTY": str(tmp_path / "empty"), "NEW": str(tmp_path / "new")}
    assert words in refused(run(*(places.get(a, a) for a in arguments)))
    assert not (tmp_path / "new").exists()  # nothing is left of what was refused


def test_another_models_collection_is_refused(
    tmp_path: Path, index: str, pictures: Path, other_model: EDJEModel
) -> None:
    other_model.save_pretrained(tmp_path / "other")
    for command in (["search", "x"], ["ingest", pictures]):
        line = refused(run(*command, "--index", index, "--model", tmp_path / "other"))
        assert "encoder_revision" in line


@pytest.mark.skipif(
    not (Path(str(files("edje_qdrant"))) / "demo" / "model" / "config.json").exists(),
    reason="the bundled model is not here",
)
def test_the_bundled_model_says_what_it_is_not_for(tmp_path: Path, pictures: Path) -> None:
    result = run("ingest", pictures, "--index", tmp_path / "index", "--json")
    assert json_of(result)["model"] == "demo"
    (line,) = result.stderr.splitlines()
    assert "only drawn shapes" in line
    assert "edje-qdrant convert" in line


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_a_server_is_found_by_option_and_by_environment(
    stand_in: Any, pictures: Path, tiny_folder: Path, index: str
) -> None:
    options = ["--url", stand_in.url, "--collection", "photos"]
    made = json_of(run("ingest", pictures, *options, "--model", tiny_folder, "--json"))
    assert (made["added"], made["location"]) == (12, stand_in.url)

    env = {"EDJE_QDRANT_URL": stand_in.url, "EDJE_QDRANT_API_KEY": "secret"}
    stand_in.headers.clear()
    about = json_of(run("info", "--collection", "photos", "--json", env=env))
    assert (about["engine"], about["points"]) == ("qdrant", 12)
    assert {headers.get("api-key") for headers in stand_in.headers} == {"secret"}
    assert "secret" not in json.dumps(about)
    found = json_of(run("search", "a red square", "--collection", "photos", "--json", env=env))
    here = json_of(run("search", "a red square", "--index", index, "--json", env=env))
    assert [hit["image_id"] for hit in found["hits"]] == [hit["image_id"] for hit in here["hits"]]
    assert json_of(run("info", "--index", index, "--json", env=env))["engine"] == "edge"


def test_convert_writes_a_folder_that_loads(
    tmp_path: Path, tiny_model: EDJEModel, tiny_folder: Path
) -> None:
    state = tiny_model.state_dict()
    name_of = published_names({})
    published = {name_of(name): tensor for name, tensor in state.items()}
    inner = "clip.vision_model."
    for name in [name for name in published if name.startswith(inner)]:
        published["vision_encoder." + name[len(inner) :]] = published[name]
    torch.save({"model": published, "epoch": 1}, tmp_path / "pytorch_model.pth")
    towers = ["--siglip", tiny_folder / "encoder", "--language-model"]
    towers.append(tiny_folder / "language_model")

    result = run(
        "convert", tmp_path / "pytorch_model.pth", "--out", tmp_path / "out", *towers, "--json"
    )

    data = json_of(result)
    assert (data["model"], data["num_tokens"]) == (str(tmp_path / "out"), 4)
    converted = EDJEModel.from_pretrained(tmp_path / "out", device="cpu")
    tokens = np.random.default_rng(0).standard_normal((5, 4, 16)).astype(np.float16)
    expected = tiny_model.score("a cat", tokens)
    np.testing.assert_allclose(
        converted.score("a cat", tokens), expected, atol=float32_slack(expected)
    )


def test_every_command_has_help_and_json() -> None:
    result = run()
    assert result.exit_code == 0
    listed = set(
        re.findall(r"^  ([a-z-]+)  +\S", result.stdout.partition("Search:")[2], re.MULTILINE)
    )
    assert listed == set(COMMANDS)
    for command in COMMANDS:
        result = run(command, "--help")
        assert result.exit_code == 0
        # A service has no end at which to print something.
        assert ("--json" in result.stdout) == (command not in ("mcp", "serve"))


def test_the_version_is_printed() -> None:
    assert run("--version").stdout == f"edje-qdrant {__version__}\n"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from edje_qdrant.cli.app import main\n"
        "try:\n"
        "    main([sys.argv[1], '--help'] if sys.argv[1:] else ['--help'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'qdrant_client', 'qdrant_edge', 'numpy', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    for command in ([], ["search"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *command], capture_output=True, text=True
        )
        assert done.stderr == ""
        assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_as_a_process_it_prints_one_line_and_no_noise(index: str, tmp_path: Path) -> None:
    with child("search", "a red square", "--index", index, "--json") as process:
        out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    (line,) = out.splitlines()
    assert len(json.loads(line)["hits"]) == 10
    with child("info", "--index", tmp_path / "nowhere") as process:
        out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: no collection")
    assert err.count("\n") == 1


def test_a_reader_that_went_away_gets_no_traceback(index: str) -> None:
    with child("info", "--index", index) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


_STOPS_AT_THE_THIRD_BATCH = """
import signal, sys, time
from edje_qdrant import ImageCollection
from edje_qdrant.cli.app import main

add, batches = ImageCollection.add_new, 0

def stopping(*arguments):
    global batches
    batches += 1
    if batches == 3:
        print("waiting", flush=True)
        time.sleep(2)  # a write under way is finished
    return add(*arguments)

ImageCollection.add_new = stopping
main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
@pytest.mark.slow
def test_an_interrupt_takes_one_line_and_can_be_continued(
    tmp_path: Path, pictures: Path, tiny_folder: Path
) -> None:
    place = ["ingest", pictures, "--index", tmp_path / "index", "--model", tiny_folder]
    command = [sys.executable, "-c", _STOPS_AT_THE_THIRD_BATCH, *map(str, place)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*command, "--batch-size", "3", "--progress"], stdout=pipe, stderr=pipe, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("error: interrupted")
    with ImageCollection.open(tmp_path / "index", "images") as collection:
        assert collection.count() == 9
    continued = json_of(run(*place, "--json"))
    assert (continued["added"], continued["skipped"]) == (3, 9)


def test_no_error_repeats_an_image() -> None:
    image = 114_000 * "A"
    for arguments in (["search", "x", "--fusion", image], ["search", "x", f"--{image}"]):
        assert len(refused(run(*arguments))) < 2_000
