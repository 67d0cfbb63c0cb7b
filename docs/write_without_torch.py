"""Write the table of `export.md` from `without_torch.json`; a test fails on a stale one.

The file comes from `python benchmarks/without_torch.py --out docs/results/without_torch.json`.
"""

from __future__ import annotations

from result_tables import RESULTS, read, table

TABLE = RESULTS / "without-torch-table.md"

_WHAT = {
    "import_s": ("import of `TwoStageRetriever`", "{:.2f} s"),
    "open_s": ("opening, with the model", "{:.2f} s"),
    "search_ms": ("a search", "{:.1f} ms"),
    "memory_mb": ("largest memory of the process", "{:,.0f} MB"),
}


def page() -> str:
    """Return the up-to-date table."""
    report = read("without_torch")
    if not report:
        return "Not run yet.\n"
    kinds = "without torch", "with torch"
    rows = [
        [_WHAT[row["what"]][0], *(_WHAT[row["what"]][1].format(row[kind]) for kind in kinds)]
        for row in report["rows"]
    ]
    return table(
        ["", *kinds],
        rows,
        f"The hits of {report['texts']} searches were the same; scores differed by at most "
        f"{report['largest difference of a score']:.1g}. The packages of the environment without "
        f"torch take {report['installed_mb']:,} MB. "
        "(`python benchmarks/without_torch.py`)",
        f"{report['date']}, {report['machine']}; the bundled model, {report['images']} pictures, "
        "medians of five processes of each kind in turn.",
    )


if __name__ == "__main__":
    TABLE.write_text(page(), encoding="utf-8")
