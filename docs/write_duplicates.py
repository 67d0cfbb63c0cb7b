"""Write the tables of `duplicates.md` from `docs/results/`; a test fails on stale ones.

The files come from `python benchmarks/duplicates.py`, see there.
"""

from __future__ import annotations

from typing import Any

from result_tables import RESULTS, read, sections, table

TABLES = RESULTS / "duplicates-tables.md"
KINDS = ("photographs", "scenes")


def page() -> str:
    """Return the up-to-date tables, between the snippet markers that `duplicates.md` uses."""
    report, scale = read("duplicates"), read("duplicates_scale")
    return sections(
        {
            "thresholds": _thresholds(report),
            "changes": _changes(report),
            "scale": _scale(scale),
            "run": _run(report, scale),
        }
    )


def _thresholds(report: dict[str, Any]) -> str:
    heads = ["what", "least"]
    for kind in KINDS:
        heads += [f"{kind}: recall", "precision", "wrong pairs"]
    rows = []
    for both in zip(*(report["tables"][kind]["thresholds"] for kind in KINDS), strict=True):
        row = [both[0]["what"], both[0]["least"]]
        for own in both:
            row += [f"{own['recall']:.1%}", f"{own['precision']:.2%}", f"{own['wrong']}"]
        rows.append(row)
    return table(heads, rows)


def _changes(report: dict[str, Any]) -> str:
    columns = [*report["tables"]["photographs"]["changes"]]
    heads = ["change", *(f"{kind}: {name}" for kind in KINDS for name in columns)]
    changes = report["tables"]["photographs"]["changes"][columns[0]]
    return table(
        heads,
        (
            [change]
            + [
                f"{report['tables'][kind]['changes'][name][change]:.0%}"
                for kind in KINDS
                for name in columns
            ]
            for change in changes
        ),
    )


def _scale(report: dict[str, Any]) -> str:
    return table(
        ["images", "groups found", "CPU seconds", "seconds"],
        (
            [
                f"{row['count']:,}",
                f"{row['groups']:,} of {row['of']:,}",
                f"{row['cpu_seconds']:,.0f}",
                f"{row['seconds']:,.0f}",
            ]
            for row in report["scale"]
        ),
    )


def _run(report: dict[str, Any], scale: dict[str, Any]) -> str:
    pairs = {kind: report["tables"][kind]["pairs"] for kind in KINDS}
    return (
        f"{report['images']['photographs']} photographs ({pairs['photographs']:,} pairs of "
        f"different ones) and {report['images']['scenes']} drawn scenes ({pairs['scenes']:,} "
        f"pairs), each with 14 copies. `{report['command']}`, {report['date']}, "
        f"{report['machine']}; the times are of {scale['date']}, with the embedded engine, "
        f"embeddings of {scale['scale'][0]['width']} numbers, and other work on the machine.\n"
    )


if __name__ == "__main__":
    TABLES.write_text(page(), encoding="utf-8")
