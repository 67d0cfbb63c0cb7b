"""What deletes or overwrites something asks first, and refuses without a terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import json_of, refused, run

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.maintenance import copy_collection, export_collection, import_collection, transcode

WriteImages = Callable[..., list[Path]]
COUNT = 6


@pytest.fixture(scope="module")
def ingested(
    tmp_path_factory: pytest.TempPathFactory, write_images: WriteImages, tiny_folder: Path
) -> Path:
    """A folder of images and, beside it, an index in which all have the album 2019."""
    folder = tmp_path_factory.mktemp("danger")
    write_images(folder / "images", COUNT)
    place = ["--index", folder / "index"]
    json_of(run("ingest", folder / "images", *place, "--model", tiny_folder, "--json"))
    with ImageCollection.open(folder / "index", "images") as collection:
        collection.update_payload({one: {"album": 2019} for one in collection.ids()})
    return folder


@pytest.fixture
def index(ingested: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ingested / "index", tmp_path / "index"))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edje_qdrant.cli.confirm.can_ask", lambda: True)


def count(index: Path) -> int:
    points: int = json_of(run("info", "--index", index, "--json"))["points"]
    return points


def ids_of(index: Path) -> list[str]:
    with ImageCollection.open(index, "images") as collection:
        return [*collection.ids()]


def test_delete_without_a_terminal_needs_yes(index: Path) -> None:
    by_payload = ["delete", "--where", "album=2019", "--index", index]
    line = refused(run(*by_payload))
    assert f"{COUNT} of {COUNT} images in the collection 'images' would be deleted" in line
    assert line.count(".png") == 3
    assert "--yes" in line
    by_id = ["delete", "--id", ids_of(index)[0], "--index", index]
    line = refused(run(*by_id, "--json"))
    assert f"1 of {COUNT} images" in line
    assert line.count(".png") == 1
    assert count(index) == COUNT
    assert json_of(run(*by_id, "--yes", "--json")) == {"deleted": 1, "points": COUNT - 1}
    both = [*by_payload, "--id", ids_of(index)[0]]
    assert f"{COUNT - 1} of {COUNT - 1} images" in refused(run(*both))
    assert run(*both, "-y").stdout == f"{COUNT - 1} deleted; the collection holds 0\n"


def test_a_dry_run_shows_and_changes_nothing(index: Path) -> None:
    for command in (["delete"], ["update", "album=2020"]):
        call = [*command, "--where", "album=2019", "--index", index, "--dry-run"]
        result = run(*call)
        assert result.exit_code == 0
        assert f"{COUNT} " in result.stderr.splitlines()[0]
        assert result.stderr.count(".png\n") == 3
        assert f"and {COUNT - 3} more" in result.stderr
        assert result.stdout.startswith("nothing was changed")
        data = json_of(run(*call, "--yes", "--json"))
        assert (data["dry_run"], data["count"], len(data["examples"])) == (True, COUNT, 3)
    assert count(index) == COUNT
    with ImageCollection.open(index, "images") as collection:
        assert collection.count({"album": 2019}) == COUNT


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("n\n", COUNT), ("\n", COUNT)])
def test_at_a_terminal_it_asks(index: Path, answer: str, left: int) -> None:
    result = run("delete", "--where", "album=2019", "--index", index, input=answer)
    assert result.exit_code == 0
    assert "Go on? [y/N]" in result.stderr
    assert result.stderr.count(".png\n") == 3
    assert result.stdout == f"{COUNT - left} deleted; the collection holds {left}\n"


@pytest.mark.usefixtures("terminal")
def test_the_end_of_the_input_is_no_answer(index: Path) -> None:
    result = run("delete", "--where", "album=2019", "--index", index, input="")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].startswith("error: interrupted")
    assert count(index) == COUNT


def test_what_matches_nothing_is_not_asked_about(index: Path) -> None:
    result = run("delete", "--where", "album=1999", "--index", index)
    assert (result.exit_code, result.stdout) == (0, f"0 deleted; the collection holds {COUNT}\n")


def test_update_by_payload_asks_and_by_id_does_not(index: Path) -> None:
    line = refused(run("update", "album=1", "seen=2", "--where", "album=2019", "--index", index))
    assert f"album, seen of {COUNT} images in the collection 'images' would be set" in line
    by_id = ["update", "album=1", "--id", ids_of(index)[0], "--index", index, "--json"]
    assert json_of(run(*by_id)) == {"updated": 1}


@pytest.fixture
def shrunk(ingested: Path, index: Path, tmp_path: Path) -> Any:
    """Arguments of an ingest of the folder, from which one image was deleted."""
    moved = tmp_path / "images"
    shutil.copytree(ingested / "images", moved)
    place = ["--index", index]
    with ImageCollection.open(index, "images") as collection:
        for one, payload in zip(
            [*collection.ids()], collection.payloads([*collection.ids()]), strict=True
        ):
            path = str(moved / Path(payload["path"]).name)
            collection.update_payload({one: {"path": path}})
    (moved / "picture-0000.png").unlink()
    return ["ingest", moved, *place, "--prune"]


def test_prune_without_a_terminal_needs_yes_and_keeps_what_was_added(
    shrunk: list[Any], index: Path, write_images: WriteImages, tmp_path: Path
) -> None:
    (new,) = write_images(tmp_path / "one", 1, seed=7)
    new.rename(tmp_path / "images" / "new.png")
    result = run(*shrunk)
    assert result.exit_code == 2
    assert result.stdout.startswith("1 added, 5 there already, 0 pruned")
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: 1 images in the collection 'images' are no longer in ")
    assert "picture-0000.png" in line
    assert count(index) == COUNT + 1
    assert json_of(run(*shrunk, "--yes", "--json"))["pruned"] == 1


@pytest.mark.usefixtures("terminal")
@pytest.mark.slow
def test_prune_asks_at_a_terminal(shrunk: list[Any], index: Path) -> None:
    kept = run(*shrunk, input="n\n")
    assert (kept.exit_code, count(index)) == (0, COUNT)
    assert "0 pruned" in kept.stdout
    assert "1 pruned" in run(*shrunk, input="y\n").stdout


def test_copies_to_memory_are_refused(index: Path) -> None:
    assert ":memory: is gone when the command ends" in refused(run("copy", index, ":memory:"))
    assert ":memory: is gone" in refused(run("copy", ":memory:", index.with_name("new")))


def test_a_copy_into_another_collection_says_so(index: Path, tmp_path: Path) -> None:
    run("copy", index, tmp_path / "new")
    json_of(run("delete", "--id", ids_of(index)[0], "--index", index, "--yes", "--json"))
    text = run("copy", index, tmp_path / "new").stdout
    assert f"0 images copied to {tmp_path / 'new'}, 5 were there already, beside 1 others" in text


def test_transcode_from_lossy_to_larger_has_to_be_asked_for(index: Path) -> None:
    place = ["--index", index]
    result = run("transcode", "int4", *place)
    assert "int4 is lossy, and there is no way back from it to float16" in result.stderr
    line = refused(run("transcode", "float16", *place))
    assert "what that dropped is gone" in line
    assert "--from-lossy" in line
    assert "int4" in run("info", *place).stdout
    assert run("transcode", "float16", "--from-lossy", *place).exit_code == 0
    about = json_of(run("info", *place, "--json"))
    assert about["codec_history"] == ["float16", "int4"]
    assert "float16 (from int4)," in about["tokens"]
    assert "float16 (from int4)," in run("info", *place).stdout


def test_what_tokens_went_through_is_kept_by_copies_and_archives(
    index: Path, tmp_path: Path
) -> None:
    with ImageCollection.open(index, "images") as collection:
        assert collection.codec_history == ()
        transcode(collection, "int8")
        transcode(collection, "float16", from_lossy=True)
        export_collection(collection, tmp_path / "a.tar")
        place = tmp_path / "copy"
        with ImageCollection.create(place, "images", collection.contract) as copied:
            copy_collection(collection, copied)
            assert copied.codec_history == ("float16", "int8")
    import_collection(tmp_path / "a.tar", ":memory:", "images")
    import_collection(tmp_path / "a.tar", tmp_path / "imported", "images")
    with ImageCollection.open(tmp_path / "imported", "images") as imported:
        assert imported.codec_history == ("float16", "int8")


@pytest.mark.slow
def test_collections_of_earlier_versions_have_an_unknown_past(index: Path, tmp_path: Path) -> None:
    with ImageCollection.open(index, "images") as collection:
        metadata = collection.index.reload_metadata()
        collection.index.set_metadata(
            {key: value for key, value in metadata.items() if key != "codec_history"}
        )
    place = ["--index", index]
    assert json_of(run("info", *place, "--json"))["codec_history"] == ["unknown"]
    assert "float16 (from unknown codecs)" in run("info", *place).stdout
    run("transcode", "int8", *place)
    assert json_of(run("info", *place, "--json"))["codec_history"] == ["unknown", "float16"]
    json_of(run("copy", index, tmp_path / "new", "--json"))
    about = json_of(run("info", "--index", tmp_path / "new", "--json"))
    assert about["codec_history"] == ["unknown", "float16"]


def test_an_empty_collection_has_no_past(index: Path) -> None:
    with ImageCollection.open(index, "images") as collection:
        collection.delete([*collection.ids()])
        transcode(collection, "int4")
        transcode(collection, "float16")
        assert collection.codec_history == ()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.slow
def test_a_real_terminal_is_asked(index: Path) -> None:
    import os
    import pty
    import subprocess

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "edje_qdrant", "delete", "--where", "album=2019"]
    with subprocess.Popen(
        [*command, "--index", str(index)], stdin=theirs, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        os.close(theirs)
        os.write(ours, b"y\n")
        out, err = process.communicate()
    os.close(ours)
    assert (process.returncode, out) == (0, f"{COUNT} deleted; the collection holds 0\n")
    assert "Go on? [y/N]" in err


def test_points_of_other_programs_are_deleted_after_a_question(index: Path, stand_in: Any) -> None:
    from qdrant_client import QdrantClient, models

    json_of(run("copy", index, stand_in.url, "--json"))
    client = QdrantClient(stand_in.url, check_compatibility=False)
    vector = client.retrieve("images", [ids_of(index)[0]], with_vectors=True)[0].vector
    client.upsert("images", [models.PointStruct(id=7, vector=vector, payload={"path": "b.png"})])
    repair = ["repair", "--url", stand_in.url, "--delete-others"]
    line = refused(run(*repair))
    assert "1 points of other programs would be deleted from images (b.png)" in line
    assert client.count("images").count == COUNT + 1
    assert json_of(run(*repair, "--yes", "--json"))["deleted"] == ["7"]
    assert client.count("images").count == COUNT
    client.close()


def test_files_are_not_replaced_without_a_word(tmp_path: Path, index: Path) -> None:
    codec = tmp_path / "codec.safetensors"
    codec.write_bytes(b"another")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    onnx = tmp_path / "joint.onnx"
    onnx.write_bytes(b"another")
    towers = ["--siglip", "a", "--language-model", "b"]
    for command, out in (
        (["fit-codec", "pq16", "--index", index], codec),
        (["convert", tmp_path / "x.pth", *towers], model),
        (["export-onnx"], onnx),
    ):
        line = refused(run(*command, "--out", out))
        assert f"{out} is there already and would be replaced" in line
        assert "--yes" in line
    assert codec.read_bytes() == onnx.read_bytes() == b"another"
