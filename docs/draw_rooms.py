"""Draw `docs/rooms.svg`: the subpackages by layer, and the imports between them.

Run `python docs/draw_rooms.py` when subpackages or their imports change. The drawing is generated
from the import statements and from import-linter's layers in pyproject.toml; a test fails when it
is stale.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from html import escape
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "edje_qdrant"
TARGET = ROOT / "docs" / "rooms.svg"

WIDTH, MARGIN, GAP = 1240, 20, 14
BOX_HEIGHT, FLOOR_HEIGHT = 74, 122
LINE, LETTERS = 13, 6.0  # height of a line and width of a letter of the small text, in pixels
COLOURS = ("#e8f0fe", "#e6f4ea", "#fef7e0", "#fce8e6", "#f3e8fd", "#e4f7fb")


def floors() -> list[list[str]]:
    """Return the rooms (subpackages) of each layer of import-linter's contract, from the top."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[room.strip() for room in layer.split("|")] for layer in layers]


def imports(rooms: set[str]) -> dict[str, set[str]]:
    """Return room -> rooms that its modules import."""
    found: dict[str, set[str]] = {room: set() for room in sorted(rooms)}
    for room in sorted(rooms):
        single = PACKAGE / f"{room}.py"
        files = [single] if single.exists() else sorted((PACKAGE / room).rglob("*.py"))
        for file in files:
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                    "edje_qdrant"
                ):
                    parts = (node.module or "").split(".")[1:2]
                    found[room] |= {*parts} or {alias.name for alias in node.names}
    return {room: (targets & rooms) - {room} for room, targets in found.items()}


def without_shortcuts(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """Remove arrows that a longer path implies (transitive reduction), for legibility."""
    reach: dict[str, set[str]] = {}

    def reached(room: str) -> set[str]:
        if room not in reach:
            reach[room] = set(arrows[room]).union(*(reached(other) for other in arrows[room]))
        return reach[room]

    return {
        room: {
            target
            for target in targets
            if not any(target in reached(other) for other in targets - {target})
        }
        for room, targets in arrows.items()
    }


def description(room: str) -> str:
    """Return the first sentence of a room's docstring."""
    single = PACKAGE / f"{room}.py"
    file = single if single.exists() else PACKAGE / room / "__init__.py"
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


def draw() -> str:
    """Return the drawing as SVG text."""
    rows = floors()
    arrows = without_shortcuts(imports({room for row in rows for room in row}))
    height = MARGIN + FLOOR_HEIGHT * len(rows)
    boxes: dict[str, tuple[float, float, float]] = {}  # room -> left, top, width
    for number, row in enumerate(rows):
        width = min(300.0, (WIDTH - 2 * MARGIN - GAP * (len(row) - 1)) / len(row))
        left = (WIDTH - width * len(row) - GAP * (len(row) - 1)) / 2
        for place, room in enumerate(row):
            boxes[room] = (left + place * (width + GAP), MARGIN + number * FLOOR_HEIGHT, width)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="Helvetica, Arial, sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    # Spread the ends of a room's arrows along its box, in the order of the boxes at the other ends.
    arriving = {room: sorted(o for o in arrows if room in arrows[o]) for room in boxes}
    for room, targets in arrows.items():
        left, top, width = boxes[room]
        ordered = sorted(targets, key=lambda target: (boxes[target][0], target))
        for place, target in enumerate(ordered):
            to_left, to_top, to_width = boxes[target]
            sources = sorted(arriving[target], key=lambda source: boxes[source][0])
            x1 = left + width * (place + 1) / (len(ordered) + 1)
            x2 = to_left + to_width * (sources.index(room) + 1) / (len(sources) + 1)
            y1, y2 = top + BOX_HEIGHT, to_top - 4
            bend = (y2 - y1) / 2
            parts.append(
                f'<path d="M{x1:.0f} {y1} C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} '
                f'{x2:.0f} {y2}" fill="none" stroke="#9aa0a6" stroke-width="1.1"/>'
                f'<path d="M{x2 - 3.5:.1f} {y2 - 3} L{x2:.1f} {y2 + 4} L{x2 + 3.5:.1f} {y2 - 3} Z" '
                'fill="#9aa0a6"/>'
            )
    for number, row in enumerate(rows):
        for room in row:
            left, top, width = boxes[room]
            middle = left + width / 2
            parts.append(
                f'<rect x="{left:.0f}" y="{top}" width="{width:.0f}" height="{BOX_HEIGHT}" rx="8" '
                f'fill="{COLOURS[number % len(COLOURS)]}" stroke="#5f6368"/>'
                f'<text x="{middle:.0f}" y="{top + 18}" text-anchor="middle" font-size="14" '
                f'font-weight="bold" fill="#202124">{room}</text>'
            )
            lines = textwrap.wrap(description(room), max(10, int((width - 12) / LETTERS)))
            if len(lines) > 3:
                lines = [*lines[:2], lines[2] + " …"]
            for line, text in enumerate(lines):
                parts.append(
                    f'<text x="{middle:.0f}" y="{top + 34 + line * LINE}" text-anchor="middle" '
                    f'font-size="11" fill="#3c4043">{escape(text)}</text>'
                )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8")
