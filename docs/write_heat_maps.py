"""Write the tables of `explain.md` from `docs/results/heat_maps.json`; a test fails on stale ones.

The file comes from `python benchmarks/heat_maps.py --out docs/results/heat_maps.json`.
"""

from __future__ import annotations

from typing import Any

from result_tables import RESULTS, read, sections, table

TABLES = RESULTS / "heat-maps-tables.md"

ASKED = {
    "phrase": "a phrase, its object",
    "caption": "a caption, all its objects",
    "colour word": "a colour, its object",
    "shape word": "a shape, its object",
    "size word": "a size, its object",
}
OWN = "explain_match"


def page() -> str:
    """Return the up-to-date tables, between the snippet markers that `explain.md` uses."""
    report = read("heat_maps")
    own = [(ASKED[row["asked"]], row) for row in report["rows"] if row["way"] == OWN]
    others = [(row["way"], row) for row in report["rows"] if row["asked"] == "phrase"]
    others = sorted(others, key=lambda pair: -pair[1]["share"])
    parts = {
        "own": _table("heat of", own),
        "others": _table("way", [(f"`{w}`" if w == OWN else w, row) for w, row in others]),
        "run": _run(report),
    }
    return sections(parts)


def _table(first: str, rows: list[tuple[str, dict[str, Any]]]) -> str:
    heads = [first, "measured", "heat inside", "even heat", "points", "ahead"]
    shares = ("share", "area", "points", "ahead")
    return table(
        heads, ([name, f"{row['n']}", *(f"{row[key]:.1%}" for key in shares)] for name, row in rows)
    )


def _run(report: dict[str, Any]) -> str:
    weights = report["mean_word_weights"]
    shown = ", ".join(f"{kind} {weights[kind] + 0.0:.1f}" for kind in ("shape", "colour", "size"))
    return (
        f"Mean weight of a word, over {report['captions']} captions, in nats: {shown}, all "
        f"others {weights['other'] + 0.0:.1f}. {report['scenes']} held-out scenes were explained "
        f"for a phrase, and the first {report['captions']} of them a caption. "
        f"`{report['command']}`, {report['date']}, {report['machine']}, "
        f"{report['cpu_seconds']} seconds.\n"
    )


if __name__ == "__main__":
    TABLES.write_text(page(), encoding="utf-8")
