from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edje_qdrant.errors import ConfigError
from edje_qdrant.text import clean_caption, clean_captions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Dog, on the GRASS.", "a dog on the grass"),
        ("  white \t space\n\n collapsed ", "white space collapsed"),
        ("snake_case_name", "snake case name"),
        ("don't stop", "dont stop"),
        ("well-known", "wellknown"),
        ("salt &amp; pepper", "salt pepper"),
        ("twice &amp;lt;b&amp;gt; escaped", "twice b escaped"),
        ("no&nbsp;break", "no break"),
        ("a caf\u00c3\u00a9 table", "a caf\u00e9 table"),
        ("\u201cquoted\u201d", "quoted"),
        ("<image> token", "image token"),
        ("\u72ac in \u6771\u4eac", "\u72ac in \u6771\u4eac"),
        ("3 + 4 = 7", "3 4 7"),
        ("!?", ""),
        ("", ""),
    ],
)
def test_clean_caption(text: str, expected: str) -> None:
    assert clean_caption(text) == expected


@given(st.text())
def test_cleaning_twice_changes_nothing(text: str) -> None:
    once = clean_caption(text)
    assert clean_caption(once) == once


def test_a_text_with_nothing_left_is_named() -> None:
    assert clean_captions(["A", "b!"]) == ["a", "b"]
    with pytest.raises(ConfigError, match=r"'\?\?'"):
        clean_captions(["a", "??"])
