"""Writing of an evaluation's files, apart from its report: cases, sheets and plots."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from edje_qdrant.errors import MissingExtraError
from edje_qdrant.evaluation.cases import draw_worst, write_cases
from edje_qdrant.evaluation.metrics_table import Measured, System
from edje_qdrant.evaluation.plots import draw_plots
from edje_qdrant.evaluation.rankings import Direction
from edje_qdrant.files import os_errors_as_store_errors

__all__ = ["write_files"]


def write_files(
    measured: Mapping[Direction, Sequence[Measured]], systems: Sequence[System], folder: Path
) -> dict[str, str | list[str]]:
    """Write the results of every query, sheets of the worst queries, and plots.

    Query results and sheets are for the largest number of candidates. If matplotlib is not
    installed, no plots are drawn.

    Returns:
        The path of `json` (which is written later), and lists `cases`, `sheets` and `plots`.

    Raises:
        StoreError: A file cannot be written.
    """
    cases: list[str] = []
    sheets: list[str] = []
    plots: list[str] = []
    for direction, found in measured.items():
        for n, one in enumerate(found, start=1):
            name = direction if len(found) == 1 else f"{direction}-{n}-{_slug(one.model)}"
            number = max(
                system.num_candidates
                for system in systems
                if (system.model, system.direction) == (one.model, direction)
            )
            path = folder / f"cases-{name}.jsonl"
            write_cases(one.rankings, number, path)
            cases.append(str(path))
            sheet = folder / f"worst-{name}.png"
            with os_errors_as_store_errors("replace", sheet):
                sheet.unlink(missing_ok=True)
            if direction == "t2i" and draw_worst(one.rankings, number, sheet):
                sheets.append(str(sheet))
    try:
        plots = [str(path) for path in draw_plots(systems, folder)]
    except MissingExtraError:  # the metrics matter more; the empty list shows there are no plots
        plots = []
    return {
        "json": str(folder / "eval.json"),
        "cases": cases,
        "sheets": sheets,
        "plots": plots,
    }


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", Path(name).name).strip("-.") or "model"
