"""Words as well as looks, as typed on the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import json_of, refused, run

WriteImages = Callable[..., list[Path]]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, write_images: WriteImages, tiny_folder: Path
) -> Path:
    folder = tmp_path_factory.mktemp("cli-words")
    paths = write_images(folder / "pictures", 8)
    lines = [json.dumps({"path": str(p), "caption": f"tram line{n}"}) for n, p in enumerate(paths)]
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    result = run(
        "ingest", folder / "manifest.jsonl", "--index", folder / "index", "--model", tiny_folder,
        "--text-fields", "caption, path", "--text-language", "german",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder


def searched(folder: Path, *arguments: object) -> list[dict[str, Any]]:
    found = json_of(run("search", *arguments, "--index", folder / "index", "--json"))
    hits: list[dict[str, Any]] = found["hits"]
    return hits


def test_words_are_searched_beside_looks(folder: Path) -> None:
    # The first among the words adds 1/2, and only two others can have a larger sum than it.
    hits = searched(folder, "tram line5", "--hybrid", "--num-candidates", 3, "--words-weight", 1)
    assert "tram line5" in [hit["payload"]["caption"] for hit in hits]
    assert all(hit["fusion_score"] is not None for hit in hits)
    hits = searched(folder, "tram line5", "--hybrid", "--fusion", "rerank", "--top-k", 2)
    assert all(hit["fusion_score"] is None for hit in hits)
    shown = json_of(run("info", "--index", folder / "index", "--json"))
    assert (shown["text_fields"], shown["text_language"]) == (["caption", "path"], "german")
    assert "caption, path (german)" in run("info", "--index", folder / "index").stdout


@pytest.mark.slow
def test_text_fields_are_changed_and_copied(folder: Path, tmp_path: Path) -> None:
    assert run("copy", folder / "index", tmp_path / "copy").exit_code == 0
    changed = json_of(run("text-fields", "caption", "--index", tmp_path / "copy", "--json"))
    assert changed == {"images": 8, "with_words": 8, "written": 8}
    options = "--text-fields", "caption", "--text-language", "none"
    assert run("copy", folder / "index", tmp_path / "third", *options).exit_code == 0
    assert run("export", "--out", tmp_path / "a.tar", "--index", tmp_path / "third").exit_code == 0
    assert run("import", tmp_path / "a.tar", "--index", tmp_path / "fourth").exit_code == 0
    shown = json_of(run("info", "--index", tmp_path / "fourth", "--json"))
    assert (shown["text_fields"], shown["text_language"]) == (["caption"], "none")
    assert run("verify", "--index", tmp_path / "fourth").exit_code == 0


def test_text_fields_are_dropped(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "index", tmp_path / "index")
    index = ("--index", tmp_path / "index")
    assert "give --drop" in refused(run("text-fields", *index))
    assert "leave out caption" in refused(run("text-fields", "caption", "--drop", *index))
    done = run("text-fields", "--drop", *index)
    assert done.stdout == "text fields dropped: caption, path; the payloads stay\n"
    assert json_of(run("text-fields", "--drop", *index, "--json")) == {"dropped": []}
    assert run("text-fields", "--drop", *index).stdout == "the collection has no text fields\n"
    assert "no text fields" in refused(run("search", "tram", "--hybrid", *index))
    assert json_of(run("info", *index, "--json"))["text_fields"] == []


def test_text_in_images_is_read_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reader:
        def read(self, image: object) -> str:
            return "harbour"

    monkeypatch.setattr("edje_qdrant.ingest.ocr.RapidOcrReader", Reader)
    run("copy", folder / "index", tmp_path / "index")
    arguments = ("ingest", folder / "manifest.jsonl", "--index", tmp_path / "index", "--ocr")
    result = run(*arguments)
    assert "text read in 8 images, found in 8; 0 were read before, 0 failed" in result.stdout
    assert "edje-qdrant text-fields caption,path,ocr" in result.stderr
    assert json_of(run(*arguments, "--json"))["ocr"]["known"] == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("search", "tram", "--words-weight", 2), "hybrid=True"),
        (("search", "tram", "--hybrid", "--words-weight", 0), "above 0"),
        (("search", "tram", "--hybrid", "--adaptive"), "adaptive"),
        (("search", "tram", "--hybrid", "--like", "7b0b3c5e-6d0c-5a6e-9c55-0e1f3a9f2d11"), "TEXT"),
        (("text-fields", "captoin"), "most similar name is 'caption'"),
        (("text-fields", ""), "''"),
        (("text-fields", "caption", "--text-language", "klingon"), "klingon"),
    ],
)
def test_what_cannot_be_used_is_refused(
    folder: Path, arguments: tuple[object, ...], words: str
) -> None:
    assert words in refused(run(*arguments, "--index", folder / "index"))


def test_an_ingest_with_other_text_fields_is_refused(folder: Path, tmp_path: Path) -> None:
    index = ("--index", folder / "index")
    source = folder / "manifest.jsonl"
    assert "text-fields tags" in refused(run("ingest", source, *index, "--text-fields", "tags"))
    fresh = ("--index", tmp_path / "new")
    for more, words in (
        (("--text-language", "english"), "--text-fields"),
        (("--text-fields", "_edje"), "reserved"),
        (("--text-fields", "caption", "--text-language", "elvish"), "elvish"),
        (("--ocr", "--watch"), "--watch"),
    ):
        assert words in refused(run("ingest", folder / "pictures", *fresh, *more))
        assert not (tmp_path / "new").exists()
