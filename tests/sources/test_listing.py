from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from edje_qdrant.errors import ConfigError
from edje_qdrant.sources.open import Source, open_source
from edje_qdrant.sources.protocol import FailedLine, ListedImage
from edje_qdrant.types import FailedImage


def listed(source: Source) -> list[str]:
    return [item.path for item in open_source(source).images()]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def manifest(folder: Path, *lines: str | bytes) -> Path:
    path = folder / "pictures.jsonl"
    path.write_bytes(b"\n".join(x.encode() if isinstance(x, str) else x for x in lines))
    return path


def test_a_folder_is_listed_in_order_without_hidden_and_other_files(tmp_path: Path) -> None:
    touch(tmp_path, "b.PNG", "a.jpeg", "sub/d.webp", "sub/deep/c.tif", "iphone.HEIC")
    touch(tmp_path, "notes.txt", ".hidden.png", ".thumbnails/e.png", "png", "sub/.f.jpg")
    expected = ["a.jpeg", "b.PNG", "iphone.HEIC", "sub/d.webp", "sub/deep/c.tif"]
    assert listed(tmp_path) == [str(tmp_path / name) for name in expected]
    assert listed(str(tmp_path)) == listed(tmp_path)


def test_paths_are_absolute_whatever_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "pictures/a.png")
    monkeypatch.chdir(tmp_path)
    expected = [str(tmp_path / "pictures" / "a.png")]
    manifest(Path("pictures"), '{"path": "a.png"}')
    for source in ("pictures", ["pictures/a.png"], "pictures/a.png", "pictures/pictures.jsonl"):
        assert listed(source) == expected


def test_a_listing_can_be_begun_again(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    source = open_source(tmp_path)
    assert list(source.images()) == list(source.images())
    assert source.count() == 2


def test_an_empty_list_is_no_error() -> None:
    assert listed([]) == []


@pytest.mark.parametrize(
    "make", ["missing", "empty", "hidden", "text", "blank.jsonl", "gone.jsonl"]
)
def test_sources_that_hold_nothing_are_refused(tmp_path: Path, make: str) -> None:
    source = tmp_path / make
    if make in ("empty", "hidden"):
        source.mkdir()
    if make == "hidden":
        touch(source, ".a.png", "b.txt")
    if make == "text":
        source.write_text("hello")
    if make == "blank.jsonl":
        source.write_text("\n  \n")
    with pytest.raises(ConfigError, match=make) as caught:
        open_source(source)
    assert "give" in str(caught.value)


@pytest.mark.parametrize("source", [[1], [None]])
def test_lists_of_other_things_are_refused(source: Source) -> None:
    with pytest.raises(ConfigError, match="must hold paths"):
        open_source(source)


def test_a_manifest_gives_fields_and_paths_beside_it(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    path = manifest(
        tmp_path / "lists",
        "\ufeff" + json.dumps({"path": "../a.png", "title": "Ä", "tags": [1, {"x": None}]}),
        "",
        json.dumps({"path": "/elsewhere/b.png"}),
    )
    assert list(open_source(path).images()) == [
        ListedImage(
            str(tmp_path / "a.png"), {"path": "../a.png", "title": "Ä", "tags": [1, {"x": None}]}
        ),
        ListedImage("/elsewhere/b.png", {"path": "/elsewhere/b.png"}),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"path": "a.png"', "no JSON"),
        (b'{"path": "\xff.png"}', "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('["a.png"]', "path"),
        ('{"file": "a.png"}', "path"),
        ('{"path": 7}', "path"),
        ('{"path": ""}', "path is empty"),
        ('{"path": "a.png", "_edje": {}}', "reserved"),
        ('{"path": "a.png", "n": 18446744073709551617}', "18446744073709551617 has more than 64"),
        ('{"path": "a.png", "n": [{"m": -9223372036854775809}]}', "64 bits; store such numbers as"),
        ('{"path": "a.png", "n": 1' + "0" * 5000 + "}", "a number of 5001 digits has more than 64"),
    ],
)
def test_a_broken_manifest_line_is_listed_by_its_number(
    tmp_path: Path, line: str | bytes, reason: str
) -> None:
    path = manifest(tmp_path, '{"path": "a.png"}', "", line, '{"path": "b.png"}')
    first, failed, last = open_source(path).images()
    assert isinstance(first, ListedImage)
    assert isinstance(last, ListedImage)
    assert isinstance(failed, FailedLine)
    assert failed.path == f"{path}:3"
    assert reason in failed.reason
    assert "\n" not in failed.reason


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="permissions do not bind this user"
)
def test_what_may_not_be_read_is_refused_or_listed(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "closed/b.png")
    closed = tmp_path / "closed"
    closed.chmod(0)
    try:
        with pytest.raises(ConfigError, match="cannot read the folder"):
            open_source(closed)
        picture, failed = open_source(tmp_path).images()
    finally:
        closed.chmod(0o755)
    assert picture.path == str(tmp_path / "a.png")
    assert failed == FailedImage(str(closed), "Permission denied")


def test_a_folder_that_vanishes_while_it_is_walked_is_listed(
    tmp_path: Path,
) -> None:
    touch(tmp_path, "a.png", "gone/b.png", "kept/c.png")
    walk = open_source(tmp_path).images()
    first = next(walk)
    (tmp_path / "gone" / "b.png").unlink()
    (tmp_path / "gone").rmdir()
    kept, failed = walk
    assert [first.path, kept.path] == [str(tmp_path / "a.png"), str(tmp_path / "kept" / "c.png")]
    assert failed == FailedImage(str(tmp_path / "gone"), "No such file or directory")


def test_a_list_may_hold_paths_pairs_and_dicts(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png", "c.png", "d.png")
    a, b, c, d = (tmp_path / f"{name}.png" for name in "abcd")
    source: Source = [
        str(a),
        (b, {"album": "2024"}),
        {"path": str(c), "album": "2023", "tags": ["x"]},
        (str(d), {}),
    ]
    expected = [
        ListedImage(str(a), {}),
        ListedImage(str(b), {"album": "2024"}),
        ListedImage(str(c), {"path": str(c), "album": "2023", "tags": ["x"]}),
        ListedImage(str(d), {}),
    ]
    images = open_source(source)
    assert [*images.images()] == [*images.images()] == expected
    assert [*open_source({str(b): {"album": "2024"}}).images()] == expected[1:2]


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (7, "item 1 of the list of images is of type int"),
        (("a.png",), "is a tuple of str; a list of images must hold"),
        (("a.png", "b.png"), "is a tuple of str, str"),
        (("a.png", None), "is a tuple of str, NoneType"),
        (({"album": 1}, "a.png"), "is a tuple of dict, str"),
        ({"album": "2024"}, "is a dict without a path"),
        ({"path": 7}, "is a dict without a path"),
        ("", "has an empty path"),
        (("a.png", {7: "x"}), "has a field 7"),
        (("a.png", {"_edje": {}}), "'_edje', which is reserved"),
    ],
)
def test_an_item_that_is_no_image_is_named(item: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        open_source(["a.png", item])
