"""Write the table of `service.md` from `service_load.json`; a test fails on a stale one.

The file comes from `python benchmarks/service_load.py --out docs/results/service_load.json` on an
otherwise idle machine.
"""

from __future__ import annotations

from result_tables import RESULTS, read, table

TABLE = RESULTS / "service-table.md"

_WHAT = {
    "search": "search",
    "page": "next page",
    "thumbnail": "thumbnail",
    "ingest": "upload of a picture",
}


def page() -> str:
    """Return the up-to-date table."""
    report = read("service_load")
    if not report:
        return "Not run yet.\n"
    requests, memory = report["requests"], report["memory_mb"]
    rows = [
        [
            words,
            f"{requests[what]['count']:,}",
            f"{requests[what]['p50_ms']:.0f} ms",
            f"{requests[what]['p99_ms']:.0f} ms",
        ]
        for what, words in _WHAT.items()
        if what in requests
    ]
    errors = ", ".join(f"{count} x {what}" for what, count in sorted(report["errors"].items()))
    return table(
        ["request", "done", "p50", "p99"],
        rows,
        f"Errors: {errors or 'none'}. Answers that changed: {report['changed_answers']}. "
        f"{report['searches_per_second']:.1f} searches a second, "
        f"{report['searches_per_batch']:.1f} in a batch. Memory at eleven equal intervals: "
        f"{', '.join(f'{size:,.0f}' for size in memory)} MB.",
        f"{report['date']}, {report['machine']}, load average {report['load_average_before']} "
        f"before, torch {report['versions']['torch']}; {report['clients']} clients for "
        f"{report['seconds']:.0f} s, {report['pictures']} pictures, {report['candidates']} "
        "candidates.",
    )


if __name__ == "__main__":
    TABLE.write_text(page(), encoding="utf-8")
