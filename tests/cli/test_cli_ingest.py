from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import json_of, run
from PIL import Image

from edje_qdrant.cli.ingest_summary import (
    failure_groups,
    kept_lines,
    left_out_lines,
    next_steps,
    place_options,
)
from edje_qdrant.cli.options import place_at
from edje_qdrant.errors import MissingExtraError
from edje_qdrant.types import FailedImage, IngestReport

WriteImages = Callable[..., list[Path]]


def test_known_images_and_copies_in_the_source_are_told_apart(
    tmp_path: Path, tiny_folder: Path, write_images: WriteImages
) -> None:
    paths = write_images(tmp_path / "images", 4)
    ingest = ["ingest", tmp_path / "images", "--index", tmp_path / "index", "--model", tiny_folder]
    assert run(*ingest).stdout.startswith("4 added, 0 there already, 0 failed")
    for number in range(2):
        shutil.copy(paths[0], paths[0].with_name(f"copy-{number}.png"))
    write_images(tmp_path / "images" / "more", 5)  # four of them known
    text = run(*ingest).stdout
    assert text.startswith("1 added, 4 there already, 6 twice in the source, 0 failed")
    data = json_of(run(*ingest, "--json"))
    assert (data["skipped"], data["known"], data["twice"]) == (11, 5, 6)
    manifest = tmp_path / "list.jsonl"
    line = {"path": str(paths[0]), "album": "a"}
    manifest.write_text(f"{json.dumps(line)}\n" * 3)
    data = json_of(run("ingest", manifest, *ingest[2:], "--json"))
    assert [data[name] for name in ("updated", "skipped", "known", "twice")] == [1, 2, 0, 2]


def test_the_last_lines_are_the_next_commands(
    tmp_path: Path, tiny_folder: Path, write_images: WriteImages
) -> None:
    images, index = tmp_path / "my images", tmp_path / "the index"
    write_images(images, 2)
    options = ("--index", index, "--model", tiny_folder, "--collection", "mine")
    lines = run("ingest", images, *options).stdout.splitlines()
    assert lines[0].endswith("the collection holds 2")
    assert lines[1] == "next:"
    search, serve = (shlex.split(line, comments=True) for line in lines[2:])
    assert search[:2] == ["edje-qdrant", "search"]
    place = ["--index", str(index), "--collection", "mine"]
    assert search[3:] == place
    assert serve == ["edje-qdrant", "serve", *place, "--images", str(images)]
    assert run(*search[1:]).exit_code == 0


def test_the_bar_shows_the_rate_and_the_time_left(
    tmp_path: Path, tiny_folder: Path, write_images: WriteImages
) -> None:
    write_images(tmp_path / "images", 3)
    options = ("--index", tmp_path / "index", "--model", tiny_folder, "--progress")
    result = run("ingest", tmp_path / "images", *options)
    last = result.stderr.rpartition("\r")[2]
    assert re.search(r"3/3 \[\d\d:\d\d<00:00, +[\d.]+ images/s\]", last), result.stderr


def test_an_edited_file_and_its_old_version(
    tmp_path: Path, tiny_folder: Path, write_images: WriteImages
) -> None:
    images = tmp_path / "images"
    first, second, third = write_images(images, 3)
    ingest = ["ingest", images, "--index", tmp_path / "index", "--model", tiny_folder]
    assert json_of(run(*ingest, "--json"))["old_versions"] == 0
    Image.new("RGB", (40, 30), "red").save(first)
    second.rename(images / "moved.png")  # its content stays: no old version
    Image.new("RGB", (40, 30), "blue").save(second)
    lines = run(*ingest).stdout.splitlines()
    assert lines[0].startswith("2 added, 2 there already, 0 failed")
    assert "edited: 1 image is an old version, whose file holds another image now" in lines[1]
    (prune,) = (line for line in lines if "--prune" in line)
    data = json_of(run(*shlex.split(prune, comments=True)[1:], "--yes", "--json"))
    assert (data["pruned"], data["points"], data["old_versions"]) == (1, 4, 0)
    assert third.exists()


def test_a_pattern_that_the_shell_wrote_out(
    tmp_path: Path, tiny_folder: Path, write_images: WriteImages
) -> None:
    paths = write_images(tmp_path / "images", 3)
    tars = [tmp_path / f"shard-{number}.tar" for number in range(3)]
    for path, file in zip(paths, tars, strict=True):
        with tarfile.open(file, "w") as tar:
            tar.add(path, path.name)
    options = ("--index", tmp_path / "index", "--model", tiny_folder)
    result = run("ingest", *tars[:2], *options)
    assert result.stdout.startswith("2 added, 0 there already, 0 failed")
    assert f"--images {tmp_path}" in result.stdout
    data = json_of(run("ingest", *tars[1:], *options, "--prune", "--yes", "--json"))
    assert (data["added"], data["pruned"], data["points"]) == (1, 0, 3)
    for others in (paths[:2], [tars[0], paths[0]], [tmp_path, paths[0]], [tars[0], "s3://b/*.tar"]):
        done = run("ingest", *others, *options)
        assert done.exit_code == 2
        assert f"2 sources are given, {others[0]} and 1 more (a shell" in done.stderr
    assert "there is no file" in run("ingest", tars[0], tmp_path / "x.tar", *options).stderr


def test_images_that_are_kept_as_there_is_a_copy_are_counted() -> None:
    assert kept_lines(IngestReport(0, 3)) == []
    one, two = (kept_lines(IngestReport(0, 3, kept_elsewhere=n)) for n in (1, 2))
    assert one == ["kept: 1 image is gone from here; an ingest found a copy elsewhere"]
    assert two[0].startswith("kept: 2 images are gone from here")


def test_updates_alone_are_not_a_failure_of_all(
    tmp_path: Path, tiny_folder: Path, write_images: WriteImages
) -> None:
    (path,) = write_images(tmp_path, 1)
    options = ("--index", tmp_path / "index", "--model", tiny_folder)
    run("ingest", path, *options)
    manifest = tmp_path / "list.jsonl"
    lines = [{"path": path.name, "album": "a"}, {"path": "gone.png"}]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    result = run("ingest", manifest, *options)
    assert result.stdout.startswith("0 added, 1 with new fields, 0 there already, 1 failed")
    assert result.exit_code == 0


@pytest.mark.skipif(sys.platform == "win32", reason="refuses such names")
def test_control_characters_in_names_stay_in_their_lines(tmp_path: Path, tiny_folder: Path) -> None:
    images = tmp_path / "two\nlines"
    images.mkdir()
    (images / "a\nb\x1b[2J.png").write_bytes(b"x")
    Image.new("RGB", (8, 8)).save(images / "c\r.png")
    (images / ".\nhidden").touch()
    options = ("--index", tmp_path / "in\ndex", "--model", tiny_folder)
    result = run("ingest", images, *options)
    assert all(line.isprintable() for line in result.stdout.splitlines())
    assert f"      {tmp_path}/two\\nlines/a\\nb\\x1b[2J.png" in result.stdout.splitlines()
    (failed,) = json_of(run("ingest", images, *options, "--json"))["failed"]
    assert Path(failed["path"]).name == "a\nb\x1b[2J.png"


def test_failures_are_grouped_and_missing_extras_named() -> None:
    heic = f"a file in the format HEIF, but {MissingExtraError('pi-heif', 'heif')}"
    raw = f"a camera's file, but {MissingExtraError('rawpy', 'raw')}"
    failures = [FailedImage(f"/a/{n}.heic", heic) for n in range(7)]
    failures += [FailedImage("/a/1.nef", raw)]
    failures += [FailedImage(f"/b/{n}", f"reason {chr(97 + n)}") for n in range(8)]
    lines = failure_groups(failures)
    assert lines[:2] == ["failed:", f"  7 x {heic}"]
    assert lines[2:8] == [
        *(f"      /a/{n}.heic" for n in range(5)),
        "      and 2 more, all listed by --json",
    ]
    assert lines[8:10] == [f"  1 x {raw}", "      /a/1.nef"]
    assert lines[-1] == "  2 for 2 other reasons, all listed by --json"
    assert failure_groups([]) == []
    cut = [FailedImage(f"/c/{n}", f"truncated ({n} bytes not processed)") for n in range(3)]
    assert failure_groups(cut)[1] == "  3 x truncated (... bytes not processed)"
    assert failure_groups(cut[:1])[1] == "  1 x truncated (0 bytes not processed)"
    report = IngestReport(1, 0, tuple(failures))
    steps = next_steps(report, "list.jsonl", "--index i", points=1, model="other", web=False)
    assert steps[1].startswith("  pip install 'edje-qdrant[heif,raw]'  # then this again: 8 ")
    assert "search 'a dog in the snow' --index i" in steps[2]
    assert steps[3].startswith("  pip install 'edje-qdrant[web]'")
    assert steps[4].startswith("  edje-qdrant serve --index i  #")  # the manifest is gone
    assert next_steps(IngestReport(0, 0), "x", "--index i", points=0, model="", web=True) == []


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("a/shard-{0..9}.tar", "a"),
        ("b.parquet#column=x", "."),
        ("films/a.mp4", "films"),
        ("s3://bucket/photos/**/*.jpg", "s3://bucket/photos/"),
        ("https://host/a/b.tar", "https://host/a/"),
    ],
)
def test_the_service_is_told_where_the_images_are(source: str, shown: str) -> None:
    heic = FailedImage("a.heic", str(MissingExtraError("pi-heif", "heif")))
    report = IngestReport(1, 0, (heic,))
    steps = next_steps(report, source, "--index i", points=1, model="demo", web=True)
    assert "1 failed image needs it" in steps[1]
    assert steps[-1].startswith(f"  edje-qdrant serve --index i --images {shown}  #")


@pytest.mark.parametrize(
    ("paths", "shown"),
    [
        (["a/1.png", "a/b/2.png"], "LISTS/a"),
        (["1.png", "../other/2.png"], "LISTS/.."),
        (["a/x.tar#member=in/1.png", "a/2.png"], "LISTS/a"),
        (["a/1.png", "", "# no image"], "LISTS"),
        (["/a/1.png", "/b/2.png"], None),
        ([str(Path.home() / "1.png"), str(Path.home() / "x/2.png")], None),
        (["a/1.png", "https://host/2.png"], None),
    ],
)
def test_the_service_is_told_the_folder_of_a_manifests_images(
    tmp_path: Path, paths: list[str], shown: str | None
) -> None:
    source = tmp_path / "my lists" / "list.txt"
    source.parent.mkdir()
    source.write_text("\n".join(paths))
    report = IngestReport(1, 0)
    steps = next_steps(report, str(source), "--index i", points=1, model="demo", web=True)
    folder = None if shown is None else os.path.normpath(shown.replace("LISTS", str(source.parent)))
    images = [] if folder is None else ["--images", folder]
    assert shlex.split(steps[-1], comments=True)[4:] == images


def test_left_out_files_are_grouped_by_kind() -> None:
    left_out = {"no image (.txt)": 1, "hidden file": 4, "no image (.xmp)": 9, "folder (@eaDir)": 2}
    assert left_out_lines(left_out) == [
        "left out:",
        "  10 x no image: 9 .xmp, 1 .txt",
        "  4 x hidden file",
        "  2 x folder: @eaDir",
    ]
    assert left_out_lines({}) == []
    assert left_out_lines({"video (.mov)": 5, "document (.pdf)": 1})[1:] == [
        "  5 x video: .mov (--frames-every 2s adds frames)",
        "  1 x document: .pdf (--pdf-pages adds pages of PDFs)",
    ]


def test_the_place_is_named_as_it_was_given() -> None:
    server = place_at("http://me:secret@host:7000", True, 7001, 30)
    options = "--url 'http://***@host:7000' --grpc --grpc-port 7001 --collection photos"
    assert place_options(server, "photos") == options
    assert place_options(place_at("a b", False, None, 30), "images") == "--index 'a b'"
