"""Write the tables of `cluster.md` from files in `docs/results/`; a test fails when stale.

They come from `benchmarks/quantization.py --out docs/results/quantization.json`,
`benchmarks/graph_width.py --out docs/results/graph-width.json`,
`benchmarks/memory_placement.py --out docs/results/memory-placement.json` and
`benchmarks/server_reads.py --out docs/results/server-reads.json`.
"""

from __future__ import annotations

from typing import Any

from result_tables import RESULTS, read, sections, table

TABLE = RESULTS / "cluster-table.md"


def page() -> str:
    """Return the up-to-date tables."""
    return sections(
        {
            "quantization": _quantization(),
            "width": _width(),
            "memory": _memory(),
            "parsing": _parsing(),
            "slices": _slices(),
        }
    )


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


def _memory() -> str:
    report = read("memory-placement")
    rows = [
        [row["placement"], *(f"{row[f'{when}_{kind}_mb']} MB" for when, kind in _COUNTED)]
        for row in report["rows"]
    ]
    note = (
        f"{report['images']:,} random vectors of {report['dim']:,} numbers: "
        f"{report['vectors_mb']} MB, {report['quantized_mb']} MB as `int8`; "
        f"{report['payload_mb']} MB of payloads. {report['searches']} searches. "
        f"{report['date']}, {report['machine']}."
    )
    heads = ["opened: own memory", "pages of files", "after searches: own memory", "pages of files"]
    return table(["placement", *heads], rows, note)


_COUNTED = (("opened", "own"), ("opened", "files"), ("searched", "own"), ("searched", "files"))


def _parsing() -> str:
    report = read("server-reads")
    ways = [way for way in report["parsing"][0] if way.startswith("1.20")]
    rows = [
        [row["kind"], f"{row['bytes'] / 1e6:.2f} MB", *(f"{row[way]:.2f}x" for way in ways)]
        for row in report["parsing"]
    ]
    return table(["answer", "size", *ways], rows, _busy(report))


def _slices() -> str:
    report = read("server-reads")
    ways = [way for way in report["scrolls"][0] if way not in ("job", "codec", "delay_ms")]
    rows = [
        [
            f"{row['job']}, `{row['codec']}`",
            f"{row['delay_ms']:g} ms",
            *(f"{row[way]:.2f}x" for way in ways),
        ]
        for row in report["scrolls"]
    ]
    note = f"{report['images']:,} images of 64 x 384 tokens in the payload. {_busy(report)}"
    return table(["", "an answer takes", *ways], rows, note)


def _busy(report: dict[str, Any]) -> str:
    return f"{report['date']}, {report['machine']}, load average {report['load_average']}."


if __name__ == "__main__":
    TABLE.write_text(page(), encoding="utf-8")
