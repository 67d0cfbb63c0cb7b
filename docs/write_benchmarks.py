"""Write the tables of `benchmarks.md` from `docs/results/`; a test fails on stale ones.

`saving.json` there comes from `benchmarks/saving.py --out docs/results/saving.json`.
`joint_encoder.json` there comes from
`python benchmarks/joint_encoder.py --out docs/results/joint_encoder.json`, as `make bench` runs it,
and `gpu.json` from `python benchmarks/gpu.py --out docs/results/gpu.json`.
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


def page() -> str:
    """Return the up-to-date tables, between the snippet markers that the page uses."""
    report = read("joint_encoder")
    writers = {"cpu": _cpu, "blip": _blip, "quality": _quality}
    parts = {"gpu": _gpu(read("gpu"))}
    for name, write in writers.items():
        parts[name] = write(report[name]) if report.get(name) else "Not run yet.\n"
    saving = read("saving")
    parts["saving"] = _saving(saving) if saving else "Not run yet.\n"
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


def _saving(report: dict[str, Any]) -> str:
    heads = ["images", "shortcut", "R@1", "less the full form's", "R@10", "x full", "worth it"]
    rows = []
    for run in report["runs"]:
        for row in run["rows"]:
            gap, is_full = row["difference"], row["shortcut"] == "full"
            rows.append(
                [
                    f"{run['images']:,}",
                    "full" if is_full else f"{row['shortcut']}",
                    f"{row['R@1']:.1%}",
                    ""
                    if is_full
                    else f"{gap['mean']:+.1%} ({gap['low']:+.1%} to {gap['high']:+.1%})",
                    f"{row['R@10']:.1%}",
                    f"{row['times']:.2f}",
                    "" if is_full else "yes" if row["worth_it"] else "no",
                ]
            )
    shared = report["shared_text"]
    versions = report["versions"]
    return table(
        heads,
        rows,
        f"{report['candidates']} candidates; fewer tokens: the first "
        f"{min(row['queries'] for run in report['runs'] for row in run['rows'])} queries. "
        f"Shared text, {shared['layers']} x {shared['width']}, {shared['candidates']} candidates: "
        f"x{shared['times']:.3f}. {report['date']}, {report['machine']}, "
        f"{report['threads']} thread, torch {versions['torch']}, load average "
        f"{report['load_average']}.",
    )


def _gpu(report: dict[str, Any]) -> str:
    if not report:
        return "Not run yet.\n"
    rows = [_gpu_row(row) for row in report["rows"]]
    difference = report["difference"]
    note = (
        f"{report['date']}, {report['device']}, {report['cores']} cores, torch "
        f"{report['versions']['torch']}, transformers {report['also']['transformers']}, triton "
        f"{report['also']['triton']}. A bfloat16 product of 8,192 x 8,192: "
        f"{report['peak_tflops']} TFLOP/s in a short run, {report['sustained_tflops']} sustained. "
        f"Largest difference of logits from float32: {difference['inference_form']}, of the "
        f"training form in bfloat16 {difference['training_form']}."
    )
    heads = ["", "", "share of the product's rate"]
    later = report.get("later")
    if not later:
        return table(heads, rows, note)
    more = table(["", ""], [row[:2] for row in map(_gpu_row, later["rows"])])
    said = (
        f"Measured later (commit {later['commit']}), {later['how']}; the script itself has not run "
        "since:"
    )
    return table(heads, rows, note, said) + "\n" + more


def _gpu_row(row: dict[str, Any]) -> list[str]:
    share = f"{row['share']:.2f}" if "share" in row else ""
    return [row["what"], f"{row['value']:,g} {row['unit']}", share]


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
