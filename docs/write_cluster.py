"""Write the tables of `cluster.md` from files in `docs/results/`; a test fails when stale.

They come from `benchmarks/quantization.py --out docs/results/quantization.json` and
`benchmarks/graph_width.py --out docs/results/graph-width.json`.
"""

from __future__ import annotations

from result_tables import RESULTS, read, sections, table

TABLE = RESULTS / "cluster-table.md"


def page() -> str:
    """Return the up-to-date tables."""
    return sections({"quantization": _quantization(), "width": _width()})


def _quantization() -> str:
    report = read("quantization")
    ways = [way for way in report["rows"][0] if way != "quantization"]
    rows = [
        [f"`{row['quantization']}`", *(f"{100 * row[way]:.1f}%" for way in ways)]
        for row in report["rows"]
    ]
    note = (
        f"{report['pictures']:,} scenes, {report['queries']} captions, {report['dim']} numbers a "
        f"vector, the best {report['wanted']}. {report['date']}, {report['machine']}."
    )
    return table(["quantization", *ways], rows, note)


def _width() -> str:
    report = read("graph-width")
    ways = [way for way in report["rows"][0] if way != "width"]
    rows = [
        [str(row["width"]), *(f"{100 * row[way]:.1f}%" for way in ways)] for row in report["rows"]
    ]
    note = (
        f"{report['images']:,} scenes, {report['queries']} captions, {report['dim']} numbers a "
        f"vector. {report['date']}, {report['machine']}."
    )
    return table(["width", *ways], rows, note)


if __name__ == "__main__":
    TABLE.write_text(page(), encoding="utf-8")
