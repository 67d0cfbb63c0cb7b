"""Helpers for the scripts that write tables from `docs/results/`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def read(name: str) -> dict[str, Any]:
    """Return the report `docs/results/NAME.json`; an empty one if its benchmark has not run."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *notes: str) -> str:
    """Return a Markdown table, with paragraphs below it."""
    lines = [_row(heads), _row(["---"] * len(heads)), *map(_row, rows)]
    return "".join(f"{line}\n" for line in lines) + "".join(f"\n{note}\n" for note in notes)


def sections(parts: Mapping[str, str]) -> str:
    """Return texts between snippet markers, so that a page can include each by its name."""
    return "".join(
        f"<!-- --8<-- [start:{name}] -->\n{text}<!-- --8<-- [end:{name}] -->\n"
        for name, text in parts.items()
    )


#: The space between a number and its unit, which stay on one line.
_BEFORE_UNIT = re.compile(r"(?<=\d) (?=(?:µs|ms|s|min|h|kB|MB|GB|TB|pairs/s|images/s)\b)")


def _row(cells: Sequence[str]) -> str:
    return f"| {_BEFORE_UNIT.sub(chr(0xA0), ' | '.join(cells))} |"
