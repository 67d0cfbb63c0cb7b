"""Write the table of `migration.md` from `docs/results/`; a test fails on a stale one.

The file comes from `python benchmarks/migration.py --out docs/results/migration.json`.
"""

from __future__ import annotations

from typing import Any

from result_tables import RESULTS, read, sections, table

TABLE = RESULTS / "migration-table.md"
_WHEN = {"before": "before", "during": "during `migrate`", "after": "after the cut-over"}


def page() -> str:
    """Return the up-to-date table, between the snippet markers that `migration.md` uses."""
    report = read("migration")
    return sections({"searches": _searches(report), "run": _run(report)})


def _searches(report: dict[str, Any]) -> str:
    base = report["searches"]["before"]["median_ms"]
    return table(
        ["searches", "median", "95th percentile", "median, as a multiple of before"],
        (
            [
                words,
                f"{report['searches'][when]['median_ms']:.0f} ms",
                f"{report['searches'][when]['p95_ms']:.0f} ms",
                f"{report['searches'][when]['median_ms'] / base:.1f}",
            ]
            for when, words in _WHEN.items()
        ),
    )


def _run(report: dict[str, Any]) -> str:
    seconds, nbytes, images = report["seconds"], report["bytes"], report["images"]
    run = report["conditions"]
    megabytes = {when: value / 1e6 for when, value in nbytes.items()}
    return (
        f"For {images:,} images, `migrate` took {seconds['encode']:.1f} s beside the searches "
        f"({seconds['ingest']:.1f} s for the first ingest, without them), the cut-over "
        f"{seconds['cut_over']:.1f} s, `--drop-old` {seconds['drop_old']:.1f} s. The folder took "
        f"{megabytes['before']:.1f} MB before, {megabytes['both']:.1f} MB with both sides, and "
        f"{megabytes['after']:.1f} MB after `--drop-old`. `{report['command']}`, {run['date']}, "
        f"{run['machine']}, load {run['load_average']}: other work ran on the machine, so only the "
        "ratios say something.\n"
    )


if __name__ == "__main__":
    TABLE.write_text(page(), encoding="utf-8")
