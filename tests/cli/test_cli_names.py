"""File names that no terminal should be shown as they are, and sources of which nothing is read."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import json_of, refused, run

from edje_qdrant.collection.collection import ImageCollection

WriteImages = Callable[..., list[Path]]
ODD = "a\n\x1b]0;title\x07 \x9b31m.png"
SHOWN = r"a\n\x1b]0;title\x07 \x9b31m.png"
NO_TEXT = b"caf\xe9\x1b[2J.png"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")


def clean(text: str) -> str:
    """Return what a command printed; no line of it can change a terminal."""
    odd = [c for c in text if (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160]
    assert odd == []
    return text


@pytest.fixture
def source(tmp_path: Path, write_images: WriteImages) -> Path:
    """A readable and a broken image with odd names, and one whose name is no UTF-8."""
    folder = tmp_path / "images"
    folder.mkdir()
    (made,) = write_images(folder, 1)
    made.rename(folder / ODD)
    (folder / f"broken {ODD}").write_bytes(b"no image")
    Path(os.fsdecode(os.fsencode(folder) + b"/" + NO_TEXT)).write_bytes((folder / ODD).read_bytes())
    return folder


def test_odd_names_are_escaped_for_people(source: Path, tmp_path: Path, tiny_folder: Path) -> None:
    place = ["--index", tmp_path / "index"]
    done = run("ingest", source, *place, "--model", tiny_folder)
    assert done.exit_code == 0
    text = clean(done.stdout)
    assert f"broken {SHOWN}\n" in text
    assert "caf\\xe9\\x1b[2J.png\n" in text
    assert sum(SHOWN in line for line in text.splitlines()) == 1  # a name is no line break
    found = clean(run("search", "a red star", *place).stdout)
    assert found.splitlines()[1].endswith(SHOWN)
    assert (
        ODD in json_of(run("search", "a red star", *place, "--json"))["hits"][0]["payload"]["path"]
    )
    (source / ODD).unlink()
    verified = run("verify", "--files", *place)
    assert f"{SHOWN}: picture gone" in clean(verified.stdout)
    # An error is one line: white space in it becomes a blank.
    in_error = SHOWN.replace(r"\n", " ")
    assert in_error in clean(refused(run("info", "--index", tmp_path / ODD)))
    assert r"caf\xe9\x1b[2J.png" in clean(run("ingest", os.fsdecode(NO_TEXT), *place).stderr)
    archive = tmp_path / f"{ODD}.tar"
    assert clean(run("export", "--out", archive, *place).stdout).rstrip().endswith(f"{SHOWN}.tar")
    assert f"{in_error}.tar" in clean(refused(run("export", "--out", archive, *place)))


def test_every_image_failed(tmp_path: Path, tiny_folder: Path) -> None:
    source = tmp_path / "images"
    source.mkdir()
    for name in ("a.png", "b.png"):
        (source / name).write_bytes(b"no image")
    ingest = ["ingest", source, "--index", tmp_path / "index", "--model", tiny_folder]
    done = run(*ingest)
    assert done.exit_code == 1
    assert "2 failed" in done.stdout
    assert "every image failed, and the collection images at" in done.stdout
    assert "was left empty" in done.stdout
    again = run(*ingest, "--json")
    assert again.exit_code == 1
    assert json.loads(again.stdout)["points"] == 0


def test_an_ingest_that_loses_the_race_opens_what_the_winner_made(
    tmp_path: Path, tiny_folder: Path, write_images: WriteImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "images"
    write_images(source, 3)
    create = ImageCollection.create

    def create_second(*arguments: Any, **options: Any) -> ImageCollection:
        create(*arguments, **options).close()  # the other process
        return create(*arguments, **options)

    monkeypatch.setattr(ImageCollection, "create", create_second)
    done = run("ingest", source, "--index", tmp_path / "index", "--model", tiny_folder)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("3 added")
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == ["images"]
