"""Write the tables of `benchmarks.md` from `docs/results/`; a test fails on stale ones.

`joint_encoder.json` there comes from
`python benchmarks/joint_encoder.py --out docs/results/joint_encoder.json`, as `make bench` runs it.
"""

from __future__ import annotations

from typing import Any

from result_tables import RESULTS, read, sections, table

TABLES = RESULTS / "benchmarks-tables.md"

_FORMS = {
    "eager": "transformers, eager attention, float32",
    "sdpa": "transformers, fused attention, float32",
    "model": "training form, float32",
}
_NOT_RUN = "not run: no GPU was available"


def page() -> str:
    """Return the up-to-date tables, between the snippet markers that the page uses."""
    report = read("joint_encoder")
    writers = {"cpu": _cpu, "blip": _blip, "quality": _quality}
    parts = {"gpu": _gpu(report.get("gpu"))}
    for name, write in writers.items():
        parts[name] = write(report[name]) if report.get(name) else "Not run yet.\n"
    parts["products"] = _products(report["cpu"]) if report.get("cpu") else "Not run yet.\n"
    return sections(parts)


def _cpu(part: dict[str, Any]) -> str:
    heads = ["threads", "batch", "form", "pairs/s", "GFLOP/s", "x eager", "x eager, processor time"]
    rows = [
        [
            f"{row['threads']}",
            f"{row['batch']}",
            _form(row["form"]),
            f"{row['pairs_per_s']:.1f}",
            f"{row['gflops']:,}",
            f"{row['wall_ratio']:.2f}",
            f"{row['processor_ratio']:.2f}",
        ]
        for row in part["rows"]
    ]
    return table(heads, rows, _circumstances(part))


def _products(part: dict[str, Any]) -> str:
    forms = [key for key in part["products"][0] if key != "threads"]
    heads = ["torch's own float32" if form == "eager" else f"`{form}`" for form in forms]
    rows = [
        [f"{row['threads']}", *(f"{row[form]:,}" for form in forms)] for row in part["products"]
    ]
    return table(["threads", *heads], rows)


def _blip(part: dict[str, Any]) -> str:
    names = {
        "edje": f"joint encoder, `{part['precision']}`, batch 64",
        "blip": "BLIP ViT-B/16, 384 pixels, batch 4",
        "blip2": "BLIP-2 ViT-g/14, 364 pixels, batch 1",
    }
    rows = []
    for name, rate in part["pairs_per_s"].items():
        times = part["edje_times"].get(name)
        rows.append([names[name], f"{rate:.3g}", f"x{times:.0f}" if times else ""])
    more = f"{part['note']}.\n" if part["note"] else ""
    return table(["", "pairs/s", "joint encoder, times this"], rows, more + _circumstances(part))


def _quality(part: dict[str, Any]) -> str:
    heads = ["form", "R@1", "tau, mean", "tau, lowest query", "pairs a second of processor time"]
    rows = [
        [
            _form(row["form"]),
            *(f"{row[key]:.4f}" for key in ("R@1", "tau", "tau_lowest")),
            f"{row['pairs_per_processor_s']:,}",
        ]
        for row in part["rows"]
    ]
    said = f"{part['scenes']:,} scenes, {part['candidates']} candidates each; "
    return table(heads, rows, said + _circumstances(part))


def _gpu(part: dict[str, Any] | None) -> str:
    if part is None:
        return f"**{_NOT_RUN[0].upper()}{_NOT_RUN[1:]}.**\n"
    names = {
        "transformers": "transformers, bfloat16, tokens on the device",
        "resident": "joint encoder, tokens on the device",
        "pinned": "joint encoder, tokens in pinned memory of the host",
    }
    rows = [
        [name, f"{part[f'{key}_pairs_per_s']:,}", f"{part[f'{key}_share_of_matmul']:.2f}"]
        for key, name in names.items()
    ]
    note = (
        f"One query: {part['latency_100_ms']:.2f} ms for 100 candidates, "
        f"{part['latency_1000_ms']:.2f} ms for 1,000. {part['device']}, "
        f"{part['matmul_tflops']:.0f} TFLOP/s. {_circumstances(part)}"
    )
    return table(["", "pairs/s", "share of the bfloat16 product"], rows, note)


def _form(name: str) -> str:
    return _FORMS.get(name, f"inference form, `{name}`")


def _circumstances(part: dict[str, Any]) -> str:
    quick = " **A quick run with one round; repeat it.**" if part["quick"] else ""
    return (
        f"{part['date']}, {part['machine']}, torch {part['torch']}, transformers "
        f"{part['transformers']}; load average {part['load'][0]} before and {part['load'][1]} "
        f"after, {part['seconds']} s.{quick}"
    )


if __name__ == "__main__":
    TABLES.write_text(page(), encoding="utf-8")
