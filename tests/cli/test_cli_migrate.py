from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import json_of, refused, run

from edje_qdrant.model import EDJEModel

WriteImages = Callable[..., list[Path]]


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory: pytest.TempPathFactory, other_model: EDJEModel) -> Path:
    folder = tmp_path_factory.mktemp("models") / "other"
    other_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ingested(
    tmp_path_factory: pytest.TempPathFactory, write_images: WriteImages, tiny_folder: Path
) -> Path:
    """Five images with captions, in `source`, and an index of them."""
    folder = tmp_path_factory.mktemp("migrated")
    paths = write_images(folder / "source", 5)
    lines = [json.dumps({"path": str(p), "caption": f"a {p.stem}"}) for p in paths]
    (folder / "list.jsonl").write_text("\n".join(lines))
    json_of(
        run("ingest", folder / "list.jsonl", "--index", folder / "index", "--model", tiny_folder,
            "--json")
    )  # fmt: skip
    return folder


@pytest.fixture
def index(tmp_path: Path, ingested: Path) -> Path:
    return Path(shutil.copytree(ingested / "index", tmp_path / "index"))


def test_the_whole_way(index: Path, other_folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    done = run("migrate", "--index", index, "--model", other_folder)
    assert done.exit_code == 0, done.output
    first, agreement, last = done.stdout.splitlines()
    assert first.startswith(f"5 images encoded with {other_folder}, in ")
    assert first.endswith("it has 5 of 5 now")
    assert agreement.startswith("for 5 texts, both models find 100% of the first 10 hits")
    assert last.startswith("edje-qdrant migrate --cut-over changes over")
    shown = run("info", "--index", index).stdout
    assert f"migration        to {other_folder}: 5 of 5 images encoded" in shown
    asked = run("migrate", "--index", index, "--cut-over")
    assert asked.exit_code == 2
    assert asked.stderr.endswith("at: give --yes to do it\n")
    texts = tmp_path / "texts.txt"
    texts.write_text("a red square\n\ntwo boats\n")
    result = run("migrate", "--index", index, "--texts", texts, "--cut-over", "--yes", "--json")
    data = json_of(result)
    assert (data["encoded"], data["agreement"]["texts"]) == (0, 2)
    assert (data["cut_over"]["images"], data["cut_over"]["left_out"]) == (5, [])
    for again in ((), ("--model", other_folder)):
        result = run("migrate", "--index", index, *again, "--cut-over", "--json")
        assert json_of(result)["cut_over"]["images"] == 5
    refusal = refused(run("migrate", "--index", index, "--model", tiny_folder, "--cut-over"))
    assert "still has the side of the model before" in refusal
    status = json_of(run("info", "--index", index, "--json"))
    assert status["model"] == str(other_folder)
    assert status["migration"]["state"] == "kept"
    assert "cut over; the side of" in run("info", "--index", index).stdout
    found = json_of(run("search", "a red square", "--index", index, "--json"))
    assert len(found["hits"]) == 5
    refused(run("search", "a red square", "--index", index, "--model", tiny_folder))
    assert "there is no terminal" in refused(run("migrate", "--index", index, "--drop-old"))
    assert json_of(run("migrate", "--index", index, "--drop-old", "-y", "--json")) == {"removed": 5}
    assert json_of(run("info", "--index", index, "--json"))["migration"] is None
    assert "no side of an earlier model" in refused(run("migrate", "--index", index, "--drop-old"))


@pytest.mark.slow
def test_going_back(index: Path, other_folder: Path, tiny_folder: Path) -> None:
    at = ("--index", index, "--sample", 0)
    assert run("migrate", *at, "--model", other_folder).exit_code == 0
    assert json_of(run("migrate", *at, "--rollback", "--yes", "--json")) == {"removed": 5}
    assert "no other side to go back to" in refused(run("migrate", *at, "--rollback"))
    assert run("migrate", *at, "--model", other_folder, "--cut-over", "--yes").exit_code == 0
    question = refused(run("migrate", *at, "--rollback"))
    assert "as it was at the cut-over; what was ingested, changed and deleted since" in question
    assert json_of(run("migrate", *at, "--rollback", "--yes", "--json")) == {"removed": 5}
    assert json_of(run("info", "--index", index, "--json"))["model"] == str(tiny_folder)


@pytest.mark.slow
def test_missing_files_are_named(
    tmp_path: Path, write_images: WriteImages, tiny_folder: Path, other_folder: Path
) -> None:
    source, index = tmp_path / "source", tmp_path / "index"
    gone = write_images(source, 3)[1]
    json_of(run("ingest", source, "--index", index, "--model", tiny_folder, "--json"))
    gone.unlink()
    at = ("--index", index, "--model", other_folder, "--sample", 0)
    result = run("migrate", *at)
    assert result.exit_code == 1
    assert "1 images cannot be encoded:" in result.stdout
    assert str(gone) in result.stdout
    result = run("migrate", *at, "--cut-over", "--yes")
    assert result.exit_code == 2
    assert "nothing was changed over: put their files back" in result.stderr
    result = run("migrate", *at, "--cut-over", "--leave-out-missing", "--yes")
    assert result.exit_code == 0, result.output
    assert "2 images; 1 were left out" in result.stdout


def test_what_cannot_be_done(index: Path, tiny_folder: Path, tmp_path: Path) -> None:
    at = ("--index", index)
    assert "say which model to migrate to" in refused(run("migrate", *at))
    assert "no captions" not in run("migrate", *at).output
    assert "one of --cut-over" in refused(run("migrate", *at, "--cut-over", "--rollback"))
    assert "give both" in refused(run("migrate", *at, "--leave-out-missing"))
    assert "written by this model" in refused(run("migrate", *at, "--model", tiny_folder))
    texts = ("--model", tiny_folder, "--texts")
    assert "does not exist" in refused(run("migrate", *at, *texts, tmp_path / "none.txt"))
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    assert "holds no texts" in refused(run("migrate", *at, *texts, empty))
    empty.write_bytes(b"\xff\xfe\xfa")
    assert "not text in UTF-8" in refused(run("migrate", *at, *texts, empty))
    assert "none" in refused(run("migrate", "--index", tmp_path / "none", "--model", tiny_folder))
