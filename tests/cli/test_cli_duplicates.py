from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import json_of, refused, run
from PIL import Image

from edje_qdrant.images.perceptual_hash import can_hash

WriteImages = Any


@pytest.fixture(scope="module")
def index(
    tmp_path_factory: pytest.TempPathFactory, write_images: WriteImages, tiny_folder: Path
) -> Path:
    """Four pictures, and two copies of the first in other formats."""
    folder = tmp_path_factory.mktemp("cli-duplicates")
    paths = write_images(folder / "pictures", 4)
    with Image.open(paths[0]) as image:
        image.save(folder / "pictures" / "copy.bmp")
        image.save(folder / "pictures" / "copy.webp", lossless=True)
    result = run("ingest", folder / "pictures", "--index", folder / "index", "--model", tiny_folder)
    assert result.exit_code == 0, result.output
    return folder / "index"


def test_groups_are_printed_drawn_and_listed(index: Path, tmp_path: Path) -> None:
    place = "--index", index
    sheet = tmp_path / "sheet.png"
    report = json_of(run("duplicates", *place, "--no-hashes", "--json", "--out", sheet))
    (group,) = report["groups"]
    assert (report["images"], report["extra"], report["hashed"]) == (6, 2, False)
    assert len({image["image_id"] for image in group}) == 3
    assert group[0]["file_size"] == max(image["file_size"] for image in group)
    assert report["extra_ids"] == [image["image_id"] for image in group[1:]]
    assert report["extra_bytes"] == sum(image["file_size"] for image in group[1:])
    with Image.open(sheet) as drawn:
        assert drawn.format == "PNG"

    shown = run("duplicates", *place, "--no-hashes", "--no-progress").stdout.splitlines()
    assert shown[0].startswith("6 images compared in ")
    assert ": 1 group of near-duplicates, 2 images besides" in shown[0]
    assert shown[1] == "group 1: 3 images"
    assert [line.split()[0] for line in shown[2:5]] == ["keep", "extra", "extra"]
    assert group[0]["path"] in shown[2]
    assert "--no-hashes was given" in shown[5]
    assert "nothing was deleted" in shown[6]

    listed = run("duplicates", *place, "--no-hashes", "--list").stdout.split()
    assert listed == report["extra_ids"]
    assert run("duplicates", *place, "--no-hashes", "--list", "--where", "width=1").stdout == ""
    assert json_of(run("info", *place, "--json"))["points"] == 6
    if can_hash():
        report = json_of(run("duplicates", *place, "--json", "--likeness", "0.9"))
        (group,) = report["groups"]
        assert [image["hash_distance"] for image in group] == [None, 0, 0]
        strict = run("duplicates", *place, "--json", "--likeness", "1", "--token-likeness", "1")
        assert json_of(strict)["hashed"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--list", "--json"], "--list or --json"),
        (["--out", "sheet.jpg"], "does not end in .png"),
        (["--likeness", "2"], "embeddings is 2.0"),
        (["--token-likeness", "0"], "tokens is 0.0"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    index: Path, options: list[str], words: str
) -> None:
    assert words in refused(run("duplicates", "--index", index, *options))
