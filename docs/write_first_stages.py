"""Write the table of `first-stages.md` from `docs/results/`; a test fails on a stale one.

`first_stages.json` there comes from
`OMP_NUM_THREADS=1 python benchmarks/first_stages.py --sizes 10000 30000 --out FILE`.
"""

from __future__ import annotations

from typing import Any

from result_tables import RESULTS, read, table

TABLE = RESULTS / "first-stages-table.md"

_COLUMNS = {
    "write": ("write_s", "s"),
    "build": ("optimize_s", "s"),
    "open": ("open_s", "s"),
    "one query": ("one_ms", "ms"),
    "64 queries": ("batch_ms", "ms"),
    "filter, first": ("filter_ms", "ms"),
    "filter, again": ("filter_again_ms", "ms"),
}

# Larger ratios are not shown: the first engine skips that step.
_BEYOND = 50


def page() -> str:
    """Return the up-to-date table."""
    report = read("first_stages")
    heads = ["vectors", "engine", *_COLUMNS, "on disk", "recall, near", "recall, apart"]
    return table(
        heads,
        map(_cells, report["rows"]),
        f"{report['date']}, {report['machine']}; {report['vectors']} vectors of width "
        f"{report['dim']}; {report['times']}, OMP_NUM_THREADS={report['threads']}; 100 points a "
        "query.",
    )


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['size']:,}",
        f"`{row['engine']}`",
        *(f"{row[key]:.3g} {unit}{_ratio(row, key)}" for key, unit in _COLUMNS.values()),
        f"{row['bytes'] / 1e6:.0f} MB",
        f"{row['recall_near']:.4f}",
        f"{row['recall_apart']:.4f}",
    ]


def _ratio(row: dict[str, Any], key: str) -> str:
    """Return the ratio to the first engine; empty for that engine and for ratios not shown."""
    if row["engine"] == "edge" or row["of_edge"][key] > _BEYOND:
        return ""
    return f" (x{row['of_edge'][key]:.2g})"


if __name__ == "__main__":
    TABLE.write_text(page(), encoding="utf-8")
