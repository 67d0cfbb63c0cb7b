"""The picture of the rooms is made from the imports, and the layout stays within its bounds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "edje_qdrant"


def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_rooms", ROOT / "docs" / "draw_rooms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_of_the_rooms_is_current() -> None:
    shown = (ROOT / "docs" / "rooms.svg").read_text(encoding="utf-8")
    assert shown == writer().draw(), "run python docs/draw_rooms.py"


def test_every_room_stands_on_a_floor() -> None:
    listed = {room for floor in writer().floors() for room in floor}
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py"}
    there |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert there - {"__init__", "__main__"} == listed


def test_few_modules_stand_beside_the_rooms() -> None:
    assert len([*PACKAGE.glob("*.py")]) <= 12


def test_every_file_that_the_page_names_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = [
        word.strip(",.;:()")
        for part in page.split("`")[1::2]
        for word in part.split()
        if word.endswith((".py", "/")) and "<" not in word and "*" not in word
    ]
    assert named
    roots = (PACKAGE, ROOT)
    missing = [name for name in named if not any((root / name).exists() for root in roots)]
    assert not missing
