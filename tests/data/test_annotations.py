from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edje_qdrant.data.annotations import (
    Annotation,
    group_by_image,
    iterate_annotations,
    of_split,
    read_annotations,
)
from edje_qdrant.errors import ConfigError

KARPATHY = {
    "dataset": "coco",
    "info": {"images": ["not these"], "text": '"images": ['},
    "images": [
        {
            "filepath": "val2014",
            "filename": "a.jpg",
            "split": "test",
            "sentences": [{"raw": "A cat.", "tokens": ["a", "cat"]}, {"raw": "Cat"}],
        },
        {"filename": "b.jpg", "split": "restval", "sentences": [{"raw": "A dog."}]},
        {"filename": "c.jpg", "split": "train", "sentences": [{"raw": "A boat."}]},
        {"filename": "d.jpg", "split": "val", "sentences": [{"raw": "A kite."}]},
    ],
}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_lines_of_pictures_with_one_or_several_captions(tmp_path: Path) -> None:
    path = write(
        tmp_path / "data.jsonl",
        '{"image": "a.jpg", "caption": "A cat"}\n\n'
        '{"image": "/b.jpg", "caption": ["A dog", "Dogs"], "id": 3}\n',
    )
    assert read_annotations(path) == [
        Annotation(str(tmp_path / "a.jpg"), ("A cat",), f"{path}:1"),
        Annotation("/b.jpg", ("A dog", "Dogs"), f"{path}:3"),
    ]


def test_lines_read_one_by_one_are_the_lines_read_at_once(tmp_path: Path) -> None:
    text = (
        '\ufeff{"image": "a.jpg", "caption": "A\u2028cat"}\r\n\n'
        '{"image": "b.jpg", "caption": ["x", "y"]}\n \n{"image": "c.jpg", "caption": "z"}'
    )
    path = write(tmp_path / "data.jsonl", text)
    for images in (None, tmp_path / "pictures"):
        found = list(iterate_annotations(path, images=images))
        assert found == read_annotations(path, images=images)
    assert [annotation.where for annotation in found] == [f"{path}:{n}" for n in (1, 3, 5)]


def test_a_wrong_line_is_named_when_it_is_reached(tmp_path: Path) -> None:
    path = write(tmp_path / "data", '{"image": "a.jpg", "caption": "A cat"}\n{"image": 3}\n')
    lines = iterate_annotations(path)
    assert next(lines).captions == ("A cat",)
    with pytest.raises(ConfigError, match=f'{path}:2: "caption" is missing'):
        next(lines)
    path.write_bytes(b'{"image": "\xff"}')
    with pytest.raises(ConfigError, match="cannot read the annotations"):
        next(iterate_annotations(path))
    with pytest.raises(ConfigError, match="cannot read the annotations"):
        next(iterate_annotations(tmp_path / "gone"))


def test_a_list_and_another_folder_for_pictures(tmp_path: Path) -> None:
    items = [{"image": "x/a.jpg", "caption": ["A cat"]}, {"image": "b.jpg", "caption": "A dog"}]
    path = write(tmp_path / "data.json", json.dumps(items, indent=1))
    found = read_annotations(path, images=tmp_path / "pictures")
    assert [a.image for a in found] == [
        str(tmp_path / "pictures" / "x" / "a.jpg"),
        str(tmp_path / "pictures" / "b.jpg"),
    ]
    assert [a.where for a in found] == [f"{path}:2", f"{path}:8"]


@pytest.mark.parametrize(
    ("split", "names"),
    [
        (None, "abcd"),
        ("test", "a"),
        ("val", "d"),
        ("restval", "b"),
        ("train", "bc"),  # restval joins in
    ],
)
def test_karpathy_files_are_read_by_split(tmp_path: Path, split: str | None, names: str) -> None:
    path = write(tmp_path / "dataset.json", json.dumps(KARPATHY))
    found = read_annotations(path, split=split)
    assert "".join(Path(a.image).stem for a in found) == names
    if split is not None:
        assert of_split(read_annotations(path), split) == found


def test_karpathy_captions_folders_and_parts(tmp_path: Path) -> None:
    path = write(tmp_path / "dataset.json", json.dumps(KARPATHY, indent=2))
    first, second, *_ = read_annotations(path)
    assert first.image == str(tmp_path / "val2014" / "a.jpg")
    assert first.captions == ("A cat.", "Cat")
    assert (first.part, second.part) == ("test", "restval")
    line = int(first.where.rpartition(":")[2])
    assert path.read_text().split("\n")[line] == '      "filepath": "val2014",'


def test_captions_of_a_picture_named_twice_are_gathered(tmp_path: Path) -> None:
    path = write(
        tmp_path / "data.jsonl",
        '{"image": "a.jpg", "caption": "A cat"}\n{"image": "b.jpg", "caption": "A dog"}\n'
        '{"image": "x/../a.jpg", "caption": "Cats"}\n',
    )
    first, second = group_by_image(read_annotations(path))
    assert first.captions == ("A cat", "Cats")
    assert first.where == f"{path}:1"
    assert second.captions == ("A dog",)


GOOD = '{"image": "a.jpg", "caption": "A cat"}'


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ('{"caption": "A cat"}', '"image" is missing'),
        ('{"image": "a.jpg"}', '"caption" is missing'),
        ('{"image": 3, "caption": "A cat"}', '"image" must be text, not 3'),
        ('{"image": "", "caption": "A cat"}', '"image" is empty'),
        ('{"image": "a.jpg", "caption": null}', '"caption" must be text or a list, not null'),
        ('{"image": "a.jpg", "caption": {"raw": "x"}}', '"caption" must be text or a list'),
        ('{"image": "a.jpg", "caption": []}', '"caption" holds no caption'),
        ('{"image": "a.jpg", "caption": "  "}', "is not a caption"),
        (
            '{"image": "a.jpg", "caption": ["A cat", 7]}',
            '"caption" holds 7, which is not a caption',
        ),
        ('["a.jpg", "A cat"]', "not an object"),
        ('"a.jpg"', "not an object"),
    ],
)
def test_wrong_fields_name_file_and_line(tmp_path: Path, bad: str, words: str) -> None:
    lines = write(tmp_path / "data.jsonl", f"{GOOD}\n{bad}\n")
    with pytest.raises(ConfigError) as caught:
        read_annotations(lines)
    assert str(caught.value).startswith(f"{lines}:2: ")
    assert words in str(caught.value)

    whole = write(tmp_path / "data.json", f"[\n{GOOD},\n\n{bad}\n]")
    with pytest.raises(ConfigError) as caught:
        read_annotations(whole)
    assert str(caught.value).startswith(f"{whole}:4: item 2: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split": None}, '"split" must be text'),
        ({"sentences": "A cat"}, '"sentences" must be a list'),
        ({"sentences": []}, '"sentences" holds no caption'),
        ({"sentences": [{"tokens": ["a"]}]}, '"raw" is missing'),
        ({"sentences": [{"raw": 1}]}, '"raw" must be text'),
        ({"sentences": ["A cat"]}, 'must hold objects {"raw"}'),
        ({"sentences": [{"raw": ""}]}, "not a caption"),
        ({"filename": ["a"]}, '"filename" must be text'),
        ({"filename": ""}, '"filename" is empty'),
        ({"filepath": 1}, '"filepath" must be text'),
        ("no object", "not an object"),
    ],
)
def test_wrong_karpathy_fields_name_file_and_line(
    tmp_path: Path, change: dict | str, words: str
) -> None:
    items = [dict(item) for item in KARPATHY["images"]]
    items[2] = {**items[2], **change} if isinstance(change, dict) else change
    rows = ",\n".join(json.dumps(item) for item in items)
    path = write(tmp_path / "d.json", '{"info": {"images": [1, 2]},\n"images": [\n' + rows + "]}")
    with pytest.raises(ConfigError) as caught:
        read_annotations(path)
    assert str(caught.value).startswith(f"{path}:5: item 3: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["filename", "split", "sentences"])
def test_a_missing_karpathy_field_names_file_and_line(tmp_path: Path, name: str) -> None:
    item = {k: v for k, v in KARPATHY["images"][0].items() if k != name}
    path = write(tmp_path / "d.json", json.dumps({"images": [item]}, indent=1))
    with pytest.raises(ConfigError, match=rf':3: item 1: "{name}" is missing'):
        read_annotations(path)


def test_wrong_items_of_other_splits_are_no_ones_business(tmp_path: Path) -> None:
    items = [*KARPATHY["images"], {"filename": "e.jpg", "split": "val", "sentences": []}]
    path = write(tmp_path / "d.json", json.dumps({"images": items}))
    assert len(read_annotations(path, split="test")) == 1


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("d.jsonl", GOOD + '\n{"image": \n', ":2: not JSON"),
        ("d.json", '[\n{"image": }\n]', ":2: not JSON"),
        ("d.json", "", ":1: not JSON"),
        ("d.json", "[" * 200_000, ":1: not JSON"),
        ("d.json", "[" + "9" * 5000 + "]", "d.json:1: "),
        ("d.jsonl", "9" * 5000, "d.jsonl:1: "),
        ("d.json", "[]", "holds no annotations"),
        ("d.jsonl", "\n\n", "holds no annotations"),
        ("d.json", "3", ":1: neither a list"),
        ("d.json", '{"annotations": []}', ":1: neither a list"),
        ("d.json", '{"images": {"a": 1}}', ":1: neither a list"),
    ],
)
def test_files_that_are_no_annotations_are_refused(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(ConfigError) as caught:
        read_annotations(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes(b'[{"image": "caf\xe9"}]')
    for name in ("nowhere.json", "latin.json", "null\0.json"):
        with pytest.raises(ConfigError, match="cannot read the annotations"):
            read_annotations(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot read the annotations"):
        read_annotations(tmp_path)


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "d.json", json.dumps(KARPATHY))
    with pytest.raises(ConfigError, match="no annotations of the split 'dev'"):
        read_annotations(path, split="dev")
    lines = write(tmp_path / "d.jsonl", GOOD)
    with pytest.raises(ConfigError, match="has no splits"):
        read_annotations(lines, split="test")


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{GOOD}\r\n{GOOD}\r\n".encode())
    assert [a.where for a in read_annotations(path)] == [f"{path}:1", f"{path}:2"]


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1)
CAPTIONS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip), min_size=1, max_size=3
)
ROUND_TRIP = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@ROUND_TRIP
@given(st.lists(st.tuples(NAMES, CAPTIONS), min_size=1, max_size=5), st.booleans())
def test_what_was_written_is_read_back(
    tmp_path: Path, pairs: list[tuple[str, list[str]]], escaped: bool
) -> None:
    root = str(tmp_path)
    expected = [(str(Path(root, n)) if n not in (".", "..") else None, tuple(c)) for n, c in pairs]
    items = [{"image": name, "caption": captions} for name, captions in pairs]
    lines = "\n".join(json.dumps(item, ensure_ascii=escaped) for item in items)
    karpathy = {
        "images": [
            {"filename": name, "split": "test", "sentences": [{"raw": c} for c in captions]}
            for name, captions in pairs
        ]
    }
    kinds = [
        read_annotations(write(tmp_path / "d.jsonl", lines)),
        read_annotations(write(tmp_path / "l.json", json.dumps(items, ensure_ascii=escaped))),
        read_annotations(write(tmp_path / "k.json", json.dumps(karpathy, ensure_ascii=escaped))),
    ]
    for found in kinds:
        assert [a.captions for a in found] == [captions for _, captions in expected]
        for annotation, (image, _) in zip(found, expected, strict=True):
            assert image is None or annotation.image == image


@ROUND_TRIP
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(0, 3))
def test_every_item_knows_the_line_it_begins_in(
    tmp_path: Path, gaps: list[int], before: int
) -> None:
    text, expected, line = "\n" * before + "[", [], 1 + before
    for number, gap in enumerate(gaps):
        text += "\n" * gap + (", " if number else "")
        line += gap
        expected.append(line)
        text += '{"image": "a",\n "caption": "\\n[{ x"}'
        line += 1
    path = write(tmp_path / "d.json", text + "\n]\n")
    assert [int(a.where.rpartition(":")[2]) for a in read_annotations(path)] == expected
