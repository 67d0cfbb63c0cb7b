"""Write the table of `service.md` from `service_load.json`; a test fails on a stale one.

It comes from `python benchmarks/service_load.py --out docs/results/service_load.json`, on a
machine with nothing else to do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
TABLE = RESULTS / "service-table.md"

_WHAT = {
    "search": "search",
    "page": "next page",
    "thumbnail": "thumbnail",
    "ingest": "upload of a picture",
}


def page() -> str:
    """Return the table as it should be."""
    found = RESULTS / "service_load.json"
    if not found.exists():
        return "Not run yet.\n"
    return table(json.loads(found.read_text(encoding="utf-8")))


def table(report: dict[str, Any]) -> str:
    """Return the table of a report."""
    requests, errors = report["requests"], report["errors"]
    lines = ["| request | done | p50 | p99 |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {words} | {requests[what]['count']:,} | {requests[what]['p50_ms']:.0f} ms | "
        f"{requests[what]['p99_ms']:.0f} ms |"
        for what, words in _WHAT.items()
        if what in requests
    ]
    counted = ", ".join(f"{count} x {what}" for what, count in sorted(errors.items()))
    memory = report["memory_mb"]
    lines += [
        "",
        f"Errors: {counted or 'none'}. Answers that changed: {report['changed_answers']}. "
        f"{report['searches_per_second']:.1f} searches a second, "
        f"{report['searches_per_batch']:.1f} in a batch. Memory at eleven even steps: "
        f"{', '.join(f'{size:,.0f}' for size in memory)} MB.",
        "",
        f"{report['date']}, {report['machine']}, load average {report['load_average_before']} "
        f"before, torch {report['versions']['torch']}; {report['clients']} clients for "
        f"{report['seconds']:.0f} s, {report['pictures']} pictures, {report['candidates']} "
        "candidates.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TABLE.write_text(page(), encoding="utf-8")
