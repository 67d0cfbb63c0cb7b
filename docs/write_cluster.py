"""Write the table of `cluster.md` from `docs/results/quantization.json`; a test fails when stale.

That file comes from `benchmarks/quantization.py --out docs/results/quantization.json`.
"""

from __future__ import annotations

from result_tables import RESULTS, read

TABLE = RESULTS / "cluster-table.md"


def page() -> str:
    """Return the up-to-date table."""
    report = read("quantization")
    ways = [way for way in report["rows"][0] if way != "quantization"]
    lines = [f"| quantization | {' | '.join(ways)} |", f"| --- |{' ---: |' * len(ways)}"]
    for row in report["rows"]:
        shares = " | ".join(f"{100 * row[way]:.1f}%" for way in ways)
        lines.append(f"| `{row['quantization']}` | {shares} |")
    lines += [
        "",
        f"{report['pictures']:,} scenes, {report['queries']} captions, {report['dim']} numbers a "
        f"vector, the best {report['wanted']}. {report['date']}, {report['machine']}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TABLE.write_text(page(), encoding="utf-8")
