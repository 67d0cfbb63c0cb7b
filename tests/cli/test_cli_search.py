"""The command line's searches, as its users type them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import refused, run
from PIL import Image

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.calibration import CALIBRATION_FILE, Calibration

WriteImages = Callable[..., list[Path]]
COUNT = 12


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, write_images: WriteImages, tiny_folder: Path
) -> Path:
    """Images, a manifest with fields, a model of their own with a calibration, an index."""
    folder = tmp_path_factory.mktemp("cli-search")
    paths = write_images(folder / "pictures", COUNT)
    lines = [
        json.dumps({"path": str(path), "album": ["a", "b"][n % 2], "page": n, "book": f"b{n // 4}"})
        for n, path in enumerate(paths)
    ]
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    shutil.copytree(tiny_folder, folder / "model")
    Calibration(1.0, 0.0, 0.0, 0.0, -1e6, 1.0, 0.0, 20, 100, "a test").save(folder / "model")
    result = run(
        "ingest", folder / "manifest.jsonl", "--index", folder / "index",
        "--model", folder / "model", "--payload-index", "album=keyword",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def search(folder: Path) -> Callable[..., dict[str, Any]]:
    def searched(*args: Any) -> dict[str, Any]:
        result = run("search", *args, "--index", folder / "index", "--json")
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
        return found

    return searched


Search = Callable[..., dict[str, Any]]


def pages(found: dict[str, Any]) -> list[int]:
    return [hit["payload"]["page"] for hit in found["hits"]]


def test_payload_indexes_are_made_once_and_shown(folder: Path) -> None:
    for _ in range(2):
        result = run(
            "ingest", folder / "manifest.jsonl", "--index", folder / "index",
            "--payload-index", "page=integer", "--payload-index", "album=keyword",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
    info = json.loads(run("info", "--index", folder / "index", "--json").stdout)
    made = {"modified_at": "datetime", "path": "keyword", "taken_at": "datetime"}
    assert info["payload_indexes"] == {"album": "keyword", "page": "integer", **made}
    shown = run("info", "--index", folder / "index").stdout
    indexes = "album (keyword), modified_at (datetime), page (integer), path (keyword), taken_at"
    assert f"{indexes} (datetime)" in shown
    for wrong in ("album", "=keyword", "album=words", "_edje=keyword"):
        place = ("--index", folder / "other", "--payload-index", wrong)
        refused(run("ingest", folder / "manifest.jsonl", *place))
    assert not (folder / "other").exists()


def test_a_new_collection_has_indexes_of_dates(folder: Path) -> None:
    for index, options in (("dated", []), ("undated", ["--no-exif"])):
        for more in ([], ["--exif"]):  # the second adds none to a collection that has images
            place = ("--index", folder / index, *options, *more)
            assert run("ingest", folder / "manifest.jsonl", *place).exit_code == 0
        info = json.loads(run("info", "--index", folder / index, "--json").stdout)
        dates = {} if options else {"modified_at": "datetime", "taken_at": "datetime"}
        assert info["payload_indexes"] == {"path": "keyword", **dates}


def test_where_filters(search: Search) -> None:
    found = search("a red square", "--where", "album=b")
    assert sorted(pages(found)) == [1, 3, 5, 7, 9, 11]
    found = search("a red square", "--where", "page=1", "--where", "page=[2,4]")
    assert sorted(pages(found)) == [1, 2, 4]


def test_of_near_duplicates_one_is_shown(search: Search) -> None:
    whole = search("a red square", "--top-k", COUNT)
    alike = "--collapse-duplicates", "--likeness", "0.001"
    found = search("a red square", "--top-k", COUNT, *alike)
    assert len(found["hits"]) < len(whole["hits"])
    listed = [i for hit in found["hits"] for i in (hit["image_id"], *hit["duplicates"])]
    assert sorted(listed) == sorted(hit["image_id"] for hit in whole["hits"])
    found = search("--like", listed[0], "--top-k", COUNT, *alike)
    assert sum(1 + len(hit["duplicates"]) for hit in found["hits"]) == COUNT - 1


def test_groups_fusion_and_cutoffs(search: Search) -> None:
    found = search("a red square", "--group-by", "book")
    assert sorted(hit["group"] for hit in found["hits"]) == ["b0", "b1", "b2"]
    found = search("a red square", "--fusion", "rrf")
    assert all(hit["fusion_score"] > 0 for hit in found["hits"])
    whole = search("a red square", "--top-k", COUNT)
    for text, cut in (("auto", 0.0), ("-0.5", -0.5)):
        found = search("a red square", "--top-k", COUNT, "--min-score", text)
        assert len(found["hits"]) == sum(hit["score"] >= cut for hit in whole["hits"])
    assert all(0 <= hit["probability"] <= 1 for hit in whole["hits"])
    found = search("a red square", "--adaptive", "--top-k", 2)
    assert (found["scored"], found["candidates"]) == (8, COUNT)
    found = search("a red square", "--budget-ms", 60_000)
    assert not found["degraded"]
    found = search("a red square", "--precision", "bfloat16")
    assert found["precision"] == "bfloat16"
    assert found["truncated"] is False
    found = search("dog " * 80)
    assert (found["truncated"], found["degraded"]) == (True, False)
    assert "longer than the model reads" in found["reason"]


def test_pages_go_on_from_the_cursor(search: Search) -> None:
    whole = search("a red square", "--top-k", COUNT)
    found = search("a red square", "--top-k", 5)
    seen = pages(found)
    while found["cursor"]:
        found = search("--cursor", found["cursor"], "--top-k", 4)
        assert found["query"] == "a red square"
        seen += pages(found)
    assert seen == pages(whole)


def test_pictures_and_examples(search: Search, folder: Path) -> None:
    paths = sorted((folder / "pictures").glob("*.png"))
    found = search("--image", paths[3], "--top-k", 3)
    assert pages(found)[0] == 3
    ids = {hit["payload"]["page"]: hit["image_id"] for hit in search("a", "--top-k", COUNT)["hits"]}
    found = search("--like", ids[3], "--like", ids[4], "--unlike", ids[5], "--top-k", COUNT)
    assert sorted(pages(found)) == [n for n in range(COUNT) if n not in (3, 4, 5)]
    assert {hit["score"] for hit in found["hits"]} == {None}
    found = search("a red square", "--like", ids[3])
    assert None not in {hit["score"] for hit in found["hits"]}
    found = search("--unlike", ids[5], "--top-k", 2)
    assert 5 not in pages(found)


def test_a_person_reads_that_a_text_was_cut(folder: Path) -> None:
    lines = run("search", "dog " * 80, "--index", folder / "index").stdout.splitlines()
    assert lines[-2].startswith("note: the text is longer than the model reads")


def test_what_a_person_reads(folder: Path) -> None:
    where = ("--index", folder / "index")
    text = run("search", "a red square", *where, "--group-by", "book").stdout
    assert "match" in text
    assert "(b0)" in text
    assert re.search(r" (good|possible|weak) +\d+%  ", text)
    assert run("search", "a cat", *where, "--where", "album=z").stdout.strip() == "nothing found"


def test_explanations_are_drawn(search: Search, folder: Path, tmp_path: Path) -> None:
    found = search("a red square", "--top-k", 2, "--explain", tmp_path / "why")
    assert len(found["explanations"]) == 2
    for hit in found["hits"]:
        drawn = found["explanations"][hit["image_id"]]
        assert drawn["words"] == ["a", "red", "square"]
        with Image.open(drawn["file"]) as image:
            assert image.format == "PNG"
    refused(run("search", "--image", "x.png", "--explain", tmp_path, "--index", folder / "index"))
    (tmp_path / "file").write_text("")
    args = ("a cat", "--index", folder / "index", "--explain", tmp_path / "file" / "why")
    assert "file" in refused(run("search", *args))


def test_refusals(folder: Path) -> None:
    where = ("--index", folder / "index")
    for args in (
        (),
        ("a cat", "--image", "x.png"),
        ("a cat", "--cursor", "abc"),
        ("--image", "x.png", "--like", "abc"),
        ("--cursor", "abc"),
        ("--image", "none.png"),
        ("--like", "00000000-0000-4000-8000-000000000001"),
        ("a cat", "--min-score", "high"),
        ("a cat", "--fusion", "sum"),
        ("a cat", "--group-by", "_edje"),
        ("a cat", "--where", "album"),
        ("a cat", "--budget-ms", "0"),
    ):
        refused(run("search", *args, *where))


def test_calibrate_writes_into_the_model(tmp_path: Path, folder: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder / "model", model)
    (model / CALIBRATION_FILE).unlink()
    args = ("calibrate", "scenes", "--limit", 40, "--num-candidates", 20)
    # A model that knows nothing is told so, or is calibrated for what it is worth.
    result = run(*args, "--model", model)
    assert result.exit_code in (0, 2)
    assert (model / CALIBRATION_FILE).exists() == (result.exit_code == 0)
    result = run(*args, "--out", tmp_path / "calibrated", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["model"] == str(tmp_path / "calibrated")
    found = EDJEModel.from_pretrained(tmp_path / "calibrated")
    assert found.calibration is not None
    assert found.calibration.cutoff == report["calibration"]["cutoff"]
    # It is the same model: it may read what the bundled one wrote.
    assert (
        found.contract().adapter_hash == EDJEModel.from_pretrained("demo").contract().adapter_hash
    )
    assert "--out" in refused(run(*args, "--model", "demo"))
    refused(run("calibrate", tmp_path / "none.jsonl", "--model", model))


def test_copies_take_payload_indexes_along(tmp_path: Path, folder: Path) -> None:
    source = folder / "index"
    for args in (
        ("copy", source, tmp_path / "copy"),
        ("export", tmp_path / "all.tar", "--index", source),
        ("import", tmp_path / "all.tar", "--index", tmp_path / "imported"),
    ):
        assert run(*args).exit_code == 0
    for place in ("copy", "imported"):
        with ImageCollection.open(tmp_path / place, "images") as collection:
            assert collection.payload_indexes()["album"] == "keyword"
            assert collection.count({"album": "a"}) == COUNT // 2


def test_payload_indexes_at_create(tmp_path: Path, tiny_model: EDJEModel) -> None:
    from edje_qdrant.errors import ConfigError

    contract = tiny_model.contract()
    with ImageCollection.create(
        tmp_path, "images", contract, payload_indexes={"album": "keyword", "camera.year": "integer"}
    ):
        pass
    with ImageCollection.open(tmp_path, "images") as collection:
        assert collection.payload_indexes() == {"album": "keyword", "camera.year": "integer"}
    for wrong in ({"album": "words"}, {"a[]": "keyword"}, ["album"]):
        with pytest.raises(ConfigError):
            ImageCollection.create(tmp_path, "other", contract, payload_indexes=wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "other").exists()


def test_fewer_candidates_than_the_usual_hits_are_all_printed(search: Search) -> None:
    assert len(search("a red square", "--num-candidates", 3)["hits"]) == 3
    assert len(search("a red square")["hits"]) == 10
