from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import child, json_of, refused, run

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.images import image_file_id
from edje_qdrant.model import EDJEModel
from edje_qdrant.tokens.codec_file import write_codec
from edje_qdrant.tokens.codecs import codec_for
from edje_qdrant.tokens.manifest import MANIFEST_NAME
from edje_qdrant.tokens.segment import HEADER_BYTES

WriteImages = Callable[..., list[Path]]
COUNT = 70
RECORD = 4 * 16 * 2


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, write_images: WriteImages) -> Path:
    """Images, 4 tokens each: enough to fit a codebook to."""
    folder = tmp_path_factory.mktemp("source")
    write_images(folder, COUNT)
    return folder


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory, source: Path, tiny_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "index"
    json_of(run("ingest", source, "--index", folder, "--model", tiny_folder, "--json"))
    return folder


@pytest.fixture
def index(tmp_path: Path, ingested: Path) -> Path:
    """A collection of one's own, in a folder."""
    return Path(shutil.copytree(ingested, tmp_path / "index"))


@pytest.fixture
def pictures(tmp_path: Path, source: Path, tiny_folder: Path) -> tuple[Path, Path]:
    """Eight images of one's own, and an index of them."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in sorted(source.iterdir())[:8]:
        shutil.copy(path, folder)
    index = tmp_path / "own"
    json_of(run("ingest", folder, "--index", index, "--model", tiny_folder, "--json"))
    return folder, index


def side_file(index: Path, name: str = "images") -> Path:
    (path,) = (index / name / "tokens").glob("tokens-*.bin")
    return path


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x5A
    path.write_bytes(content)


def by_rank(index: Path, *more: object) -> list[dict[str, Any]]:
    found = json_of(run("search", "a red square", "--index", index, "--json", *more))
    hits: list[dict[str, Any]] = found["hits"]
    return hits


def found(index: Path, *more: object) -> list[tuple[str, float]]:
    return [(hit["image_id"], round(hit["score"], 4)) for hit in by_rank(index, *more)]


def points(index: Path, *more: object) -> int:
    number: int = json_of(run("info", "--index", index, "--json", *more))["points"]
    return number


# verify


def test_verify_where_all_is_well(index: Path) -> None:
    result = run("verify", "--index", index)
    assert (result.exit_code, result.stdout) == (0, f"{COUNT} images: all is well\n")
    data = json_of(run("verify", "--index", index, "--files", "--json"))
    assert data == {
        "clean": True,
        "points": COUNT,
        "counts": {},
        "findings": [],
        "orphan_records": 0,
        "orphan_bytes": 0,
        "unlisted_files": [],
    }


def test_verify_where_something_is_wrong(index: Path) -> None:
    flip(side_file(index), HEADER_BYTES + 3 * RECORD)
    with side_file(index).open("r+b") as file:
        file.truncate(HEADER_BYTES + (COUNT - 2) * RECORD)
    result = run("verify", "--index", index)
    assert result.exit_code == 1
    head, *lines = result.stdout.splitlines()
    assert head == f"{COUNT} images: NOT all is well"
    assert {"  2 tokens missing", "  1 tokens damaged"} <= set(lines)
    assert sum("picture-0003.png: tokens damaged: " in line for line in lines) == 1
    as_json = run("verify", "--index", index, "--json")
    assert as_json.exit_code == 1
    data = json.loads(as_json.stdout)
    assert data["counts"] == {"tokens missing": 2, "tokens damaged": 1}
    assert {Path(f["path"]).name for f in data["findings"]} == {
        "picture-0003.png", "picture-0068.png", "picture-0069.png",
    }  # fmt: skip


def test_verify_compares_pictures_where_it_is_asked_to(pictures: tuple[Path, Path]) -> None:
    folder, index = pictures
    (folder / "picture-0000.png").unlink()
    shutil.copy(folder / "picture-0002.png", folder / "picture-0001.png")
    assert run("verify", "--index", index).exit_code == 0
    result = run("verify", "--index", index, "--files", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["counts"] == {"picture gone": 1, "picture changed": 1}


def test_the_earlier_spelling_of_an_option_is_accepted_and_not_shown(index: Path) -> None:
    assert run("verify", "--index", index, "--pictures").exit_code == 0
    assert "--pictures" not in run("verify", "--help").stdout


def test_verify_lists_the_first_and_counts_the_rest(index: Path) -> None:
    side_file(index).unlink()
    result = run("verify", "--index", index)
    assert result.exit_code == 1
    assert f"  {COUNT} tokens missing" in result.stdout
    assert result.stdout.count("picture-") == 20
    assert f"and {COUNT - 20} more, all listed by --json" in result.stdout
    listed = json.loads(run("verify", "--index", index, "--json").stdout)
    assert len(listed["findings"]) == COUNT


def test_verify_speaks_of_orphans_which_are_no_fault(index: Path) -> None:
    hits = by_rank(index)
    json_of(run("delete", "--yes", "--index", index, "--id", hits[0]["image_id"], "--json"))
    result = run("verify", "--index", index)
    assert result.exit_code == 0
    assert "1 records without a point take 128 bytes; `edje-qdrant compact`" in result.stdout


# repair


@pytest.mark.slow
def test_repair_and_the_search_goes_on(index: Path) -> None:
    before = found(index)
    flip(side_file(index), HEADER_BYTES + 3 * RECORD)
    line = refused(run("search", "a red square", "--index", index, "--num-candidates", COUNT))
    assert "edje-qdrant repair" in line
    result = run("repair", "--index", index)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == "1 images encoded again, 0 could not be repaired"
    assert run("verify", "--index", index).exit_code == 0
    assert [i for i, _ in found(index)] == [i for i, _ in before]
    again = json_of(run("repair", "--index", index, "--json"))
    assert (again["encoded"], again["left"], again["compacted"]["moved"]) == ([], [], 0)


@pytest.mark.parametrize("what", ["manifest", "header", "file", "end"])
def test_repair_of_what_does_not_open(pictures: tuple[Path, Path], what: str) -> None:
    folder, index = pictures
    before = found(index)
    path = side_file(index)
    if what == "manifest":
        (index / "images" / "tokens" / MANIFEST_NAME).unlink()
    elif what == "header":
        flip(path, 50)
    elif what == "file":
        path.unlink()
    else:
        with path.open("r+b") as file:
            file.truncate(HEADER_BYTES + 3 * RECORD + 1)
    if what != "end":
        line = refused(run("search", "x", "--index", index))
        assert "edje-qdrant repair" in line or "restore it" in line
    data = json_of(run("repair", "--index", index, "--json"))
    assert data["left"] == []
    assert len(data["encoded"]) == {"manifest": 0, "end": 5}.get(what, 8)
    assert [i for i, _ in found(index)] == [i for i, _ in before]
    assert json_of(run("ingest", folder, "--index", index, "--json"))["skipped"] == 8


def test_repair_of_what_cannot_be_mended_and_the_way_out(pictures: tuple[Path, Path]) -> None:
    folder, index = pictures
    gone = {hit["payload"]["path"]: hit["image_id"] for hit in by_rank(index)}
    flip(side_file(index), 50)  # none of it can be read, and it does not open
    (folder / "picture-0002.png").unlink()
    lost = gone[str(folder / "picture-0002.png")]
    result = run("repair", "--index", index)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0] == "7 images encoded again, 1 could not be repaired"
    assert lost in result.stdout
    assert "edje-qdrant delete --id ID" in result.stdout
    data = json.loads(run("repair", "--index", index, "--json").stdout)
    assert data["encoded"] == []
    assert [finding["image_id"] for finding in data["left"]] == [lost]
    assert data["left"][0]["kind"] == "tokens damaged"
    deleted = json_of(run("delete", "--yes", "--index", index, "--id", lost, "--json"))
    assert deleted == {"deleted": 1, "points": 7}
    assert run("repair", "--index", index).exit_code == 0
    assert len(found(index)) == 7
    assert run("verify", "--index", index).exit_code == 0


def test_repair_with_another_model_is_refused(
    index: Path, tmp_path: Path, other_model: EDJEModel
) -> None:
    other_model.save_pretrained(tmp_path / "other")
    flip(side_file(index), HEADER_BYTES)
    line = refused(run("repair", "--index", index, "--model", tmp_path / "other"))
    assert "adapter_hash" in line


# compact


def test_compact(index: Path) -> None:
    before = found(index)
    gone = [hit["image_id"] for hit in by_rank(index, "--top-k", COUNT)[10:]]
    ids = [word for image_id in gone for word in ("--id", image_id)]
    assert json_of(run("delete", "--yes", "--index", index, *ids, "--json"))["points"] == 10
    size = side_file(index).stat().st_size
    data = json_of(run("compact", "--index", index, "--json"))
    assert data == {
        "moved": 10,
        "unreadable": [],
        "left_out": [],
        "bytes_before": size,
        "bytes_after": HEADER_BYTES + 10 * RECORD,
    }
    assert side_file(index).stat().st_size == data["bytes_after"]
    assert found(index) == before
    text = run("compact", "--index", index).stdout
    assert text == "0 images' tokens moved; side files took 5,376 bytes, now 5,376\n"


# transcode and fit-codec


@pytest.mark.slow
def test_transcode_by_name(index: Path) -> None:
    exact = found(index)
    result = run("transcode", "int8", "--index", index)
    assert (result.exit_code, result.stdout) == (
        0, f"{COUNT} images now in int8, {4 * 18} bytes each\n",
    )  # fmt: skip
    about = json_of(run("info", "--index", index, "--json"))
    assert (about["contract"]["codec"], about["bytes_per_image"]) == ("int8", 72)
    larger = ["transcode", "pq32", "--index", index]  # so narrow are the tokens of this model
    assert "--from-lossy" in refused(run(*larger))
    data = json_of(run(*larger, "--from-lossy", "--json"))
    assert (data["moved"], data["unreadable"], data["bytes_per_image"]) == (COUNT, [], 4 * 32)
    key = data["codec"]
    assert key.startswith("pq32-")
    again = json_of(run("transcode", "pq32", "--index", index, "--json"))
    assert (again["moved"], again["codec"]) == (0, key)  # with the codebook it has
    assert run("verify", "--index", index).exit_code == 0
    lossy = found(index)
    assert {i for i, _ in lossy} & {i for i, _ in exact}
    assert (
        json_of(run("transcode", "float16", "--from-lossy", "--index", index, "--json"))["moved"]
        == COUNT
    )
    assert found(index) == lossy  # what was left out does not come back
    assert "known: float16" in refused(run("transcode", "zip", "--index", index))


def test_transcode_names_what_cannot_be_read(index: Path) -> None:
    flip(side_file(index), HEADER_BYTES)
    result = run("transcode", "int8", "--index", index)
    assert result.exit_code == 1
    assert result.stdout == (
        f"{COUNT - 1} images now in int8, 72 bytes each; 1 cannot be read: run "
        "`edje-qdrant repair`\n"
    )
    as_json = run("transcode", "int4", "--index", index, "--json")
    assert as_json.exit_code == 1
    assert len(json.loads(as_json.stdout)["unreadable"]) == 1
    json_of(run("repair", "--index", index, "--json"))
    assert json_of(run("transcode", "int4", "--index", index, "--json"))["unreadable"] == []


@pytest.mark.slow
def test_a_codec_is_fitted_once_and_used_for_several(
    index: Path, tmp_path: Path, source: Path, tiny_folder: Path
) -> None:
    codec = tmp_path / "codec.safetensors"
    data = json_of(run("fit-codec", "pq16", "--out", codec, "--index", index, "--json"))
    assert data == {"codec": data["codec"], "path": str(codec), "bytes_per_image": 64}
    again = tmp_path / "again.safetensors"
    text = run("fit-codec", "pq16", "--out", again, "--index", index).stdout
    assert text == f"wrote {again}: {data['codec']}, 64 bytes an image; use it with --codec\n"
    assert again.read_bytes() == codec.read_bytes()

    assert json_of(run("transcode", codec, "--index", index, "--json"))["codec"] == data["codec"]
    place = ["--index", tmp_path / "new", "--json"]
    made = ["ingest", source, *place, "--model", tiny_folder]
    json_of(run(*made, "--codec", codec))
    about = json_of(run("info", *place))
    assert (about["contract"]["codec"], about["bytes_per_image"]) == ("pq16", 64)
    assert found(tmp_path / "new") == found(index)
    json_of(run(*made, "--codec", codec))  # the same
    json_of(run(*made, "--codec", "pq16"))
    other = tmp_path / "other.safetensors"
    json_of(run("fit-codec", "pq16", "--out", other, "--index", index, "--sample", 64, "--json"))
    assert "edje-qdrant transcode" in refused(run(*made, "--codec", other))


def test_a_codec_fitted_to_pictures(tmp_path: Path, source: Path, tiny_folder: Path) -> None:
    codec = tmp_path / "codec.safetensors"
    fit = ["fit-codec", "pq32", "--out", codec, "--source", source, "--model", tiny_folder]
    key = json_of(run(*fit, "--json"))["codec"]
    place = ["--index", tmp_path / "new", "--json"]
    json_of(run("ingest", source, *place, "--model", tiny_folder, "--codec", codec))
    assert json_of(run("info", *place))["contract"]["codec_hash"][:8] == key[-8:]


def test_a_codec_of_another_models_tokens_is_refused(
    index: Path, tmp_path: Path, other_model: EDJEModel, source: Path, tiny_model: EDJEModel
) -> None:
    other_model.save_pretrained(tmp_path / "model")
    codec = tmp_path / "codec.safetensors"
    fit = ["fit-codec", "pq16", "--out", codec, "--source", source, "--model", tmp_path / "model"]
    json_of(run(*fit, "--json"))
    before = found(index)
    assert "another adapter" in refused(run("transcode", codec, "--index", index))
    ingest = ["ingest", source, "--index", tmp_path / "new", "--codec", codec]
    assert "another adapter" in refused(run(*ingest, "--model", tiny_model.name_or_path or ""))
    assert not (tmp_path / "new").exists()
    assert json_of(run("info", "--index", index, "--json"))["contract"]["codec"] == "float16"
    assert found(index) == before


def test_codec_files_that_cannot_be_used(index: Path, tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"
    assert "there is no codec at" in refused(run("transcode", path, "--index", index))
    path.write_bytes(b"no codec")
    assert "damaged" in refused(run("transcode", path, "--index", index))
    rng = np.random.default_rng(0)
    narrow = codec_for("pq16", 4, 7).fit(rng.standard_normal((80, 4, 7)).astype("f2"))
    write_codec(narrow, path)
    assert "numbers" in refused(run("transcode", path, "--index", index))
    assert json_of(run("info", "--index", index, "--json"))["contract"]["codec"] == "float16"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["int8", "--out", "OUT.safetensors"], "int8 has no codebook to fit"),
        (["zip", "--out", "OUT.safetensors"], "known: float16"),
        (["pq16", "--out", "OUT.bin"], "does not end in .safetensors"),
        (["pq16", "--out", "nowhere/OUT.safetensors"], "does not exist"),
        (["pq16", "--out", "OUT.safetensors", "--sample", "63"], "64 images or more"),
        (["pq16", "--out", "OUT.safetensors", "--sample", "-1"], "sample is -1"),
        (["pq16", "--out", "OUT.safetensors", "--source", "NOWHERE"], "does not exist"),
        (["pq16"], "--out"),
    ],
)
def test_what_fit_codec_refuses(
    ingested: Path,
    tmp_path: Path,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    place = ["--index", ingested, "--model", tiny_folder]
    assert words in refused(run("fit-codec", *arguments, *place))
    assert list(tmp_path.iterdir()) == []


def test_without_faiss_the_extra_is_named(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    for command in (
        ["transcode", "pq16"],
        ["fit-codec", "pq16", "--out", tmp_path / "codec.safetensors"],
    ):
        assert "edje-qdrant[faiss]" in refused(run(*command, "--index", index))
    assert json_of(run("info", "--index", index, "--json"))["contract"]["codec"] == "float16"


@pytest.mark.slow
def test_ingest_fits_a_codec_where_it_needs_one(
    tmp_path: Path, source: Path, tiny_folder: Path, index: Path
) -> None:
    place = ["--index", tmp_path / "new", "--model", tiny_folder]
    made = json_of(run("ingest", source, *place, "--codec", "pq32", "--json"))
    assert (made["added"], made["points"]) == (COUNT, COUNT)
    about = json_of(run("info", "--index", tmp_path / "new", "--json"))
    assert (about["contract"]["codec"], about["bytes_per_image"]) == ("pq32", 128)
    assert about["tokens"] == "4 x 16, pq32, in the side file"
    again = json_of(run("ingest", source, *place, "--codec", "pq32", "--json"))
    assert again["skipped"] == COUNT
    assert len(set(found(tmp_path / "new")) & set(found(index))) < 10  # it is lossy
    assert "as pq32, not int8" in refused(run("ingest", source, *place, "--codec", "int8"))

    few = tmp_path / "few"
    few.mkdir()
    shutil.copy(source / "picture-0000.png", few)
    none = ["--index", tmp_path / "none", "--model", tiny_folder]
    line = refused(run("ingest", few, *none, "--codec", "pq32"))
    assert "64 images or more" in line
    assert not (tmp_path / "none").exists()


# export, import, copy


def test_export_and_import(index: Path, tmp_path: Path) -> None:
    json_of(run("transcode", "pq16", "--index", index, "--json"))
    archive = tmp_path / "pictures.tar"
    data = json_of(run("export", "--out", archive, "--index", index, "--json"))
    assert data == {
        "copied": COUNT,
        "left_out": [],
        "skipped": 0,
        "nbytes": COUNT * 64,
        "path": str(archive),
        "bytes": archive.stat().st_size,
    }
    assert "already" in refused(run("export", "--out", archive, "--index", index))
    text = run("export", "--out", tmp_path / "again.tar", "--index", index).stdout
    assert text == f"wrote {COUNT} images to {tmp_path / 'again.tar'}\n"
    assert (tmp_path / "again.tar").read_bytes() == archive.read_bytes()

    place = ["--index", tmp_path / "new"]
    text = run("import", archive, *place, "--collection", "photos").stdout
    assert text == f"{COUNT} images copied to {tmp_path / 'new'}, 0 were there already\n"
    assert json_of(run("import", archive, *place, "--collection", "photos", "--json")) == {
        "copied": 0, "skipped": COUNT, "nbytes": COUNT * 64, "left_out": [],
    }  # fmt: skip
    assert found(tmp_path / "new", "--collection", "photos") == found(index)
    assert run("verify", *place, "--collection", "photos").exit_code == 0


def test_archives_that_are_refused(index: Path, tmp_path: Path) -> None:
    archive = tmp_path / "pictures.tar"
    json_of(run("export", "--out", archive, "--index", index, "--json"))
    new = ["--index", tmp_path / "new"]
    assert "there is no archive" in refused(run("import", tmp_path / "nowhere", *new))
    json_of(run("transcode", "int8", "--index", index, "--json"))
    assert "codec: expected 'float16'" in refused(run("import", archive, "--index", index))
    flip(archive, archive.stat().st_size // 2)
    assert "damaged" in refused(run("import", archive, *new))
    archive.write_bytes(b"no archive")
    assert "not an archive of `edje-qdrant export`" in refused(run("import", archive, *new))
    flip(side_file(index), HEADER_BYTES + 5)
    assert "edje-qdrant repair" in refused(
        run("export", "--out", tmp_path / "b.tar", "--index", index)
    )
    assert not (tmp_path / "b.tar").exists()


@pytest.mark.slow
def test_copy(index: Path, tmp_path: Path) -> None:
    data = json_of(run("copy", index, tmp_path / "new", "--json"))
    assert data == {"copied": COUNT, "skipped": 0, "nbytes": COUNT * RECORD, "left_out": []}
    assert found(tmp_path / "new") == found(index)
    # Under a new name, beside the other.
    text = run("copy", index, index, "--new-name", "twin").stdout
    assert text == f"{COUNT} images copied to {index}, 0 were there already\n"
    assert found(index, "--collection", "twin") == found(index)
    twin = ["copy", index, index, "--new-name", "twin", "--json"]
    assert json_of(run(*twin))["skipped"] == COUNT
    # And from there on with tokens in a folder of their own.
    side = ["--tokens-folder", tmp_path / "side", "--new-name", "third"]
    json_of(run("copy", index, tmp_path / "new", "--collection", "twin", *side, "--json"))
    assert found(tmp_path / "new", "--collection", "third") == found(index)
    assert len([*(tmp_path / "side" / "third").glob("tokens-*.bin")]) == 1


def test_copies_that_are_refused(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for same in (index, f"{index}/", "index", "./index"):
        assert "--new-name" in refused(run("copy", index, same))
    assert "no collection 'b'" in refused(run("copy", index, tmp_path / "new", "--collection", "b"))
    assert not (tmp_path / "new").exists()
    json_of(run("copy", index, "new", "--json"))
    json_of(run("transcode", "int8", "--index", "new", "--json"))
    assert "codec: expected" in refused(run("copy", index, "new"))


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
@pytest.mark.slow
def test_to_a_server_and_back(
    index: Path, tmp_path: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDJE_QDRANT_API_KEY", "secret")
    before = found(index)
    assert json_of(run("copy", index, stand_in.url, "--json"))["copied"] == COUNT
    assert {headers.get("api-key") for headers in stand_in.headers} == {"secret"}
    there = ["--url", stand_in.url, "--json"]
    about = json_of(run("info", *there))
    assert (about["engine"], about["points"]) == ("qdrant", COUNT)
    assert "payload" in about["tokens"]
    hits = json_of(run("search", "a red square", *there))["hits"]
    assert [hit["image_id"] for hit in hits] == [image_id for image_id, _ in before]
    assert json_of(run("verify", *there))["clean"]
    text = run("compact", "--url", stand_in.url).stdout
    assert text == "tokens are in the payload; there are no side files to compact\n"
    archive = tmp_path / "a.tar"
    json_of(run("export", "--out", archive, *there))
    json_of(run("import", archive, "--index", tmp_path / "back", "--json"))
    assert found(tmp_path / "back") == before
    assert "--new-name" in refused(run("copy", stand_in.url, stand_in.url))


# delete and update


def test_update_and_delete(index: Path) -> None:
    a, b, c, d = (hit["image_id"] for hit in by_rank(index)[:4])
    nobody = "00000000-0000-4000-8000-000000000000"
    place = ["--index", index]
    set_ = ["update", "album=trip", "year=2024", 'tags=["x", "y"]', "ok=true", "note=a=b"]
    made = run(*set_, "--id", a, "--id", b, "--id", nobody, *place)
    assert (made.exit_code, made.stdout) == (0, "2 updated\n")
    assert json_of(run("update", "year=2025", "--id", c, *place, "--json")) == {"updated": 1}
    payload = {hit["image_id"]: hit["payload"] for hit in by_rank(index)}
    expected = {"album": "trip", "year": 2024, "tags": ["x", "y"], "ok": True, "note": "a=b"}
    assert expected.items() <= payload[a].items()
    assert payload[c]["year"] == 2025
    assert "year" not in payload[d]
    # By payload: more values of a field are either, more fields are both.
    where = ["--where", "year=2024", "--where", "year=2025"]
    assert json_of(run("update", "seen=1", "--yes", *where, *place, "--json")) == {"updated": 3}
    both = [*where, "--where", "album=trip"]
    assert json_of(run("update", "seen=2", "--yes", *both, *place, "--json")) == {"updated": 2}
    with_id = ["--where", "seen=2", "--id", d]
    assert json_of(run("update", "seen=3", "--yes", *with_id, *place, "--json")) == {"updated": 3}

    # A number beyond 64 bits stays as it was written, as text.
    large = "18446744073709551617"
    assert json_of(run("update", f"n={large}", "--id", d, *place, "--json")) == {"updated": 1}
    by_large = ["--where", f"n=[{large}, 1]"]
    assert json_of(run("update", "seen=4", "--yes", *by_large, *place, "--json")) == {"updated": 1}
    (changed,) = (hit["payload"] for hit in by_rank(index) if hit["image_id"] == d)
    assert (changed["n"], changed["seen"]) == (large, 4)

    text = run("delete", "--id", nobody, *place).stdout
    assert text == f"0 deleted; the collection holds {COUNT}\n"
    data = json_of(run("delete", "--yes", "--where", "year=2024", "--id", d, *place, "--json"))
    assert data == {"deleted": 3, "points": COUNT - 3}
    left = {hit["image_id"] for hit in by_rank(index, "--top-k", COUNT)}
    assert len(left) == COUNT - 3
    assert c in left
    assert not left & {a, b, d}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["delete"], "which images to delete"),
        (["update", "a=1"], "which images to update"),
        (["update", "--id", "ID"], "FIELD=VALUE"),
        (["update", "a", "--id", "ID"], "FIELD=VALUE"),
        (["update", "=1", "--id", "ID"], "FIELD=VALUE"),
        (["update", "_edje=1", "--id", "ID"], "reserved"),
        (["update", "a=null", "--id", "ID"], "None"),
        (["update", "a=1", "--id", "x"], "not a UUID"),
        (["delete", "--id", "x"], "not a UUID"),
        (["delete", "--where", "a"], "FIELD=VALUE"),
        (["delete", "--where", "a=1.5"], "floats"),
        (["delete", "--where", "a=null"], "None"),
        (["delete", "--where", 'a={"b": 1}'], "'a.b'"),
        (["delete", "--where", "a=[]"], "empty list"),
        (["delete", "--where", "_edje.codec=x"], "reserved"),
        (["update", "a=1", "--where", "_edje.codec=x"], "reserved"),
    ],
)
def test_what_delete_and_update_refuse(
    ingested: Path, source: Path, arguments: list[str], words: str
) -> None:
    image_id = image_file_id(str(source / "picture-0000.png"))
    given = [image_id if a == "ID" else a for a in arguments]
    assert words in refused(run(*given, "--index", ingested))
    assert points(ingested) == COUNT


def test_what_is_no_json_is_text(index: Path) -> None:
    image_id = by_rank(index)[0]["image_id"]
    fields = ["a=NaN", "b=Infinity", "c={", "d=", "e=  ", 'f="7"']
    json_of(run("update", *fields, "--id", image_id, "--index", index, "--json"))
    payload = by_rank(index)[0]["payload"]
    assert {key: payload[key] for key in "abcdef"} == {
        "a": "NaN", "b": "Infinity", "c": "{", "d": "", "e": "  ", "f": "7",
    }  # fmt: skip
    data = json_of(run("delete", "--yes", "--where", "a=NaN", "--index", index, "--json"))
    assert data["deleted"] == 1


# search --on-missing, ingest --prune


def test_search_with_pictures_that_cannot_be_scored(index: Path) -> None:
    flip(side_file(index), HEADER_BYTES + 2 * RECORD)
    broken = "picture-0002.png"
    search = ["search", "a red square", "--index", index, "--top-k", COUNT]
    assert "edje-qdrant repair" in refused(run(*search))
    assert "edje-qdrant repair" in refused(run(*search, "--on-missing", "error"))
    assert "on_missing" in refused(run(*search, "--on-missing", "guess"))
    result = run(*search, "--on-missing", "first_stage")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    (row,) = [line for line in lines if line.endswith(broken)]
    rank, score, before, arrow, _ = row.split()
    assert (score, arrow) == ("-", "=")
    assert rank == before
    (reason,) = [line for line in lines if line.startswith("degraded: ")]
    assert reason.startswith(f"degraded: 1 of {COUNT} candidates could not be scored")
    data = json_of(run(*search, "--on-missing", "first_stage", "--json"))
    assert data["degraded"] is True
    assert data["reason"] in reason
    assert [Path(h["payload"]["path"]).name for h in data["hits"] if h["score"] is None] == [broken]
    # Also where the side file cannot be opened at all.
    flip(side_file(index), 50)
    data = json_of(run(*search, "--on-missing", "first_stage", "--json"))
    assert [hit["score"] for hit in data["hits"]] == [None] * COUNT
    assert [hit["rank"] for hit in data["hits"]] == [h["retrieval_rank"] for h in data["hits"]]


def test_ingest_with_prune(pictures: tuple[Path, Path]) -> None:
    folder, index = pictures
    ingest = ["ingest", folder, "--index", index]
    for name in ("picture-0000.png", "picture-0001.png"):
        (folder / name).unlink()
    text = run(*ingest).stdout
    assert text.startswith("0 added, 6 there already, 0 failed in ")
    assert text.splitlines()[0].endswith("the collection holds 8")
    text = run(*ingest, "--prune", "--yes").stdout
    assert text.startswith("0 added, 6 there already, 2 pruned, 0 failed in ")
    assert text.splitlines()[0].endswith("the collection holds 6")
    assert run(*ingest, "--prune", "--yes").stdout.startswith(
        "0 added, 6 there already, 0 pruned, 0 failed"
    )
    (folder / "picture-0002.png").unlink()
    data = json_of(run(*ingest, "--prune", "--yes", "--json"))
    assert (data["pruned"], data["points"]) == (1, 5)
    line = refused(run("ingest", folder / "picture-0003.png", "--index", index, "--prune"))
    assert "leave prune out" in line
    manifest = folder / "list.jsonl"
    manifest.write_text('{"path": "picture-0003.png"}\n{broken\n')
    line = refused(run("ingest", manifest, "--index", index, "--prune"))
    assert "nothing was pruned: 1 lines" in line
    assert points(index) == 5


# all of them


@pytest.mark.parametrize(
    "command",
    [
        ["verify"],
        ["repair"],
        ["compact"],
        ["transcode", "int8"],
        ["fit-codec", "pq16", "--out", "OUT"],
        ["export", "--out", "OUT"],
        ["delete", "--id", "00000000-0000-4000-8000-000000000000"],
        ["update", "a=1", "--where", "b=1"],
    ],
)
def test_a_collection_that_is_not_there(tmp_path: Path, command: list[str]) -> None:
    given = [str(tmp_path / "out.safetensors") if word == "OUT" else word for word in command]
    assert "no collection 'images'" in refused(run(*given, "--index", tmp_path / "nowhere"))
    assert "--index FOLDER" in refused(run(*given))
    assert list(tmp_path.iterdir()) == []


def test_while_another_has_the_collection_open(index: Path, tmp_path: Path) -> None:
    with ImageCollection.open(index, "images"):
        for command in (["verify"], ["compact"], ["repair"], ["export", "--out", tmp_path / "a"]):
            assert "open in this process already" in refused(run(*command, "--index", index))
    assert not (tmp_path / "a").exists()


def test_as_a_process_verify_ends_with_one_where_something_is_wrong(index: Path) -> None:
    flip(side_file(index), HEADER_BYTES)
    with child("verify", "--index", index, "--json") as process:
        out, err = process.communicate()
    assert (process.returncode, err) == (1, "")
    (line,) = out.splitlines()
    assert json.loads(line)["counts"] == {"tokens damaged": 1}


@pytest.mark.slow
def test_bars_go_to_stderr(index: Path, tmp_path: Path) -> None:
    for command in (
        ["verify"], ["compact"], ["transcode", "int8"], ["export", "--out", tmp_path / "a"],
        ["repair"],
    ):  # fmt: skip
        result = run(*command, "--index", index, "--progress", "--json")
        assert f"{COUNT}/{COUNT}" in result.stderr
        json_of(result)
    into = ["import", tmp_path / "a", "--index", tmp_path / "new", "--progress", "--json"]
    assert "importing" in run(*into).stderr
    quiet = run("verify", "--index", index, "--no-progress")
    assert quiet.stderr == ""
