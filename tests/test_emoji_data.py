"""The annotation files of `examples/emoji/make_data.py`, without its packages."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "emoji"
TONES = "🏻🏼🏽🏾🏿"


@pytest.fixture
def make_data(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setitem(sys.modules, "resvg_py", ModuleType("resvg_py"))
    monkeypatch.syspath_prepend(str(EXAMPLE))
    return importlib.import_module("make_data")


def read(path: Path) -> dict[str, list[str]]:
    lines: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["image"]: line["caption"] for line in lines}


def test_names_are_a_file_of_their_own_and_no_test_name_is_in_training(
    make_data: ModuleType, tmp_path: Path
) -> None:
    people = [f"{person}{tone}‍🚒" for person in "👨👩" for tone in TONES]
    emoji = ["🐶", "🇦🇩", *people]
    drawings = [
        make_data.Drawing(artist, each, "")
        for artist in (*make_data.TRAINING_ARTISTS, make_data.UNSEEN_ARTIST)
        for each in emoji
    ]
    captions = {
        language: {each: (f"{language} name {n}", f"{language} keys {n}")
                   for n, each in enumerate(emoji)}
        for language in ("en", "ru")
    }  # fmt: skip
    make_data.write_annotations(drawings, captions, tmp_path)
    train, names = read(tmp_path / "train.jsonl"), read(tmp_path / "names.jsonl")
    assert list(names) == list(train)
    dog = "pictures/noto/1f436.png"
    assert names[dog] == ["en name 0", "ru name 0"]
    assert train[dog] == ["en name 0", "en keys 0", "ru name 0", "ru keys 0"]
    asked = {text for each in read(tmp_path / "combinations.ru.jsonl").values() for text in each}
    assert asked
    assert asked.isdisjoint(text for each in train.values() for text in each)
    assert set(read(tmp_path / "flags.en.jsonl")) == {"pictures/openmoji/1f1e6-1f1e9.png"}
