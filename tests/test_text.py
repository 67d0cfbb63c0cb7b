from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edje_qdrant.errors import ConfigError
from edje_qdrant.text import clean_caption, clean_captions, printable


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ordinary name (1).png", "ordinary name (1).png"),
        ("äöü 犬 🐈 👨\u200d👩 a\xa0b", "äöü 犬 🐈 👨\u200d👩 a\xa0b"),
        ("two\nlines\r\t", r"two\nlines\r\t"),
        ("\x1b]0;title\x07\x1b[31m", r"\x1b]0;title\x07\x1b[31m"),
        ("\x7f\x9b1m\x00", r"\x7f\x9b1m\x00"),
        ("gnp.\u202egpj", r"gnp.\u202egpj"),
        ("a\u2028b\u2029c\u2066\ufeff", r"a\u2028b\u2029c\u2066\ufeff"),
        (os.fsdecode(b"caf\xe9.png"), r"caf\xe9.png"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_a_terminal_shows(text, shown):
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_a_shown_text_is_one_line_without_control_characters(text):
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in shown)
    assert printable(shown) == shown
    shown.encode()
