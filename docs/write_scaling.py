"""Write the tables of `scaling.md` from `docs/results/`; a test fails when they are stale.

The JSON files there come from `benchmarks/growth.py`, `search_overhead.py`, `concurrency.py`,
`startup.py` and `ingest_rate.py`, each with `--out`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from result_tables import RESULTS, read, sections, table

TABLES = RESULTS / "scaling-tables.md"
CONSTANTS = Path(__file__).parent.parent / "edje_qdrant" / "planning" / "constants.json"


def page() -> str:
    """Return the up-to-date tables, between the snippet markers that `scaling.md` uses."""
    parts = {
        "growth": _growth,
        "search_overhead": _overhead,
        "concurrency": _concurrency,
        "startup": _startup,
        "ingest_rate_base": _ingest,
        "ingest_rate_demo": _ingest,
        "ingest_rate_large": _first_ingest,
    }
    reports = {name: read(name) for name in parts}
    return sections(
        {
            name: parts[name](report) if report else "Not run yet.\n"
            for name, report in reports.items()
        }
    )


def _table(heads: list[str], rows: list[list[str]], report: dict[str, Any], more: str = "") -> str:
    return table(
        heads,
        rows,
        f"{report['date']}, {report['machine']}, load average {report['load_average']}, torch "
        f"{report['versions']['torch']}, {report['threads']} thread(s).{more}",
    )


def _growth(report: dict[str, Any]) -> str:
    heads = [
        "pictures", "open", "first stage", "its recall", "of the first queries", "reading tokens",
        "and decoding", "whole search", "own memory", "mapped files", "side files", "index",
    ]  # fmt: skip
    rows = [
        [
            f"{row['size']:,}",
            f"{1000 * row['open_s']:.0f} ms",
            f"{row['search_ms']:.2f} ms",
            f"{row['recall']:.1%}",
            *(
                f"{row[key]:.2f} ms"
                for key in ("first_search_ms", "fetch_ms", "fetch_and_decode_ms")
            ),
            f"{row['whole_ms']:,.0f} ms",
            *(
                f"{row[key] / 1e6:,.1f} MB"
                for key in (
                    "own_memory_bytes", "mapped_files_bytes", "side_bytes", "index_bytes",
                )
            ),
        ]
        for row in report["rows"]
    ]  # fmt: skip
    first, last = report["rows"][0], report["rows"][-1]
    more = " Processor time."
    if last is not first:
        more += (
            f" Among {last['size'] // first['size']} times the pictures, a whole search takes "
            f"{last['whole_ms'] / first['whole_ms']:.2f} times as long, its first stage "
            f"{last['search_ms'] / first['search_ms']:.1f} times."
        )
    return _table(heads, rows, report, more)


def _overhead(report: dict[str, Any]) -> str:
    rows = [
        [
            row["what"],
            f"{row['us']:,.0f}",
            f"{row['share']:.1%}",
            "yes" if row["outside"] else "",
        ]
        for row in report["rows"]
    ]
    more = (
        f" Processor time, medians of {report['searches']} searches. Outside in all: "
        f"{report['outside_us']:,.0f} µs, {report['outside_share']:.1%} of a search; without what "
        f"the first stage's call does around the engine, {report['outside_first_stage_us']:,.0f} "
        f"µs; all of it if neither model runs, {report['outside_by_itself_us']:,.0f} µs."
    )
    return _table(["step", "µs", "share", "outside"], rows, report, more)


def _concurrency(report: dict[str, Any]) -> str:
    names = {
        "alone": "one after another",
        "offline": f"`search_batch` of {report['clients']}",
        "merged": f"{report['clients']} threads through `SearchBatcher`",
    }
    rates = report["searches_per_second"]
    rows = [[name, f"{rates[key]:.1f}"] for key, name in names.items()]
    more = (
        f" {report['candidates']} candidates. Merged reaches {report['merged_to_offline']:.2f} of "
        f"the batch, and {report['merged_to_alone']:.2f} of one after another."
    )
    return _table(["searches", "a second"], rows, report, more)


def _startup(report: dict[str, Any]) -> str:
    rows = [
        [
            f"`{row['what']}`",
            f"{row['wall_ms']:.0f} ms",
            f"{row['beyond_python_ms']:.0f} ms",
            f"{row['processor_ms']:.0f} ms",
            f"{row['to_python']:.1f}",
        ]
        for row in report["rows"]
    ]
    heads = ["command", "wall", "beyond Python's own", "processor", "x `python -c pass`"]
    more = ""
    if opening := report.get("open"):
        more = (
            f" Opening a collection of {opening['pictures']:,} pictures: "
            f"{opening['wall_ms']:.0f} ms, {opening['processor_ms']:.0f} ms of the processor."
        )
    return _table(heads, rows, report, more)


def _ingest(report: dict[str, Any]) -> str:
    names = {
        "encoder": "the encoder alone",
        "all_but": "everything else alone, one thread",
        "ingest_2_workers": "`ingest_images`, 2 workers",
        "ingest_4_workers": "`ingest_images`, 4 workers",
        "ingest_2_processes": "`ingest_images`, 2 processes, their start counted",
        "ingest_4_processes": "`ingest_images`, 4 processes, their start counted",
    }
    rows = [
        [
            name,
            f"{report['pictures_per_second'][key]:.3g}",
            f"{report['processor_seconds'][key]:.2f}",
            f"{report['ingest_to_encoder'].get(key, '')}",
            # If everything else is a hundredth of the encoder's time, this is noise.
            f"{report['hidden'].get(key, '')}" if report["model"] == "demo" else "",
        ]
        for key, name in names.items()
        if key in report["pictures_per_second"]
    ]
    heads = ["", "pictures a second", "processor, s", "of the encoder's rate", "hidden"]
    more = f" {report['pictures']} pictures in batches of {report['batch_size']}."
    return _table(heads, rows, report, more)


def _first_ingest(report: dict[str, Any]) -> str:
    constants = json.loads(CONSTANTS.read_text(encoding="utf-8"))
    two_cores = constants["images_per_second_two_cores"]["value"]
    decode = constants["decode_photograph_ms"]["value"]
    gpu = constants["images_per_second_gpu"]
    rows = [
        ["2 cores, no GPU: whole ingest", f"{two_cores:g} images/s", _hours(10_000 / two_cores)],
        [
            f"{gpu['machine']}, {gpu['cores']} cores: whole ingest, files of 640 x 480",
            f"{gpu['value']:,} images/s",
            _hours(10_000 / gpu["value"]),
        ],
        [
            "one core: reading, decoding and resizing a JPEG file of 12 megapixels",
            f"{decode} ms",
            f"{_hours(10_000 * decode / 1000)}; on {gpu['cores']} cores "
            f"{_hours(10_000 * decode / 1000 / gpu['cores'])}",
        ],
    ]
    more = (
        f" {report['pictures']} files of {report['file_bytes'] / 1e6:.1f} MB, processor time. The "
        f"row of the GPU: {gpu['date']}, `{gpu['command']}`."
    )
    return _table(["what", "measured", "10,000 photographs"], rows, report, more)


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min" if seconds >= 59.5 else f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min"


if __name__ == "__main__":
    TABLES.write_text(page(), encoding="utf-8")
