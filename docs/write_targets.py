"""Write the table of targets from `docs/results/`, and print it; a test fails when it is stale.

The JSON files there come from the scripts in `benchmarks/`, which `make bench` runs.
"""

from __future__ import annotations

from collections.abc import Iterator

from result_tables import RESULTS, read, table

TABLE = RESULTS / "targets-table.md"

#: Target, measured value, and whether the target is reached; None if it was not measured.
Target = tuple[str, str, bool | None]

_NO_GPU = "not run: no GPU was available"


def page() -> str:
    """Return the up-to-date table."""
    words = {True: "yes", False: "**no**", None: "not run"}
    rows = [[aim, found, words[reached]] for aim, found, reached in targets()]
    return table(["target", "measured", "reached"], rows)


def targets() -> list[Target]:
    """Return all targets."""
    return [*_joint_encoder(), *_gpu(), *_search(), *_startup(), *_together(), *_growth()]


def _joint_encoder() -> Iterator[Target]:
    report = read("joint_encoder")
    cpu = report.get("cpu")
    auto = cpu["auto"] if cpu else "auto"
    for form, batch, wanted in ((auto, 64, 2.5), (auto, 10, 2.5), ("int8", 64, 3), ("int8", 10, 3)):
        which = f"`{form}`" + (", what `auto` chose" if form == auto else "")
        found = [r for r in cpu["rows"] if (r["form"], r["batch"]) == (form, batch)] if cpu else []
        said = ", ".join(f"x{r['wall_ratio']:.2f} ({_threads(r['threads'])})" for r in found)
        reached = min(r["wall_ratio"] for r in found) >= wanted if found else None
        yield (
            f"CPU: {which}, batch {batch}: {wanted} times transformers eager float32",
            said,
            reached,
        )
    blip = report["blip"]["edje_times"]["blip"] if report.get("blip") else None
    yield (
        "CPU: 100 times BLIP ViT-B/16-384 image-text matching",
        f"x{blip:.0f}" if blip else "",
        blip >= 100 if blip else None,
    )
    rows = {row["form"]: row for row in (report.get("quality") or {"rows": []})["rows"]}
    for form, row in rows.items():
        if form == "model":
            continue
        lost = 100 * abs(row["R@1"] - rows["model"]["R@1"])
        yield (
            f"`{form}`: Kendall's tau of 0.99 to float32, R@1 within 0.3 points",
            f"{row['tau']:.4f}, {lost:.1f} points",
            row["tau"] >= 0.99 and lost <= 0.3,
        )


#: Rows of `gpu.json`: what is measured, in which unit, and the aim; milliseconds are upper bounds.
_GPU_AIMS = (
    ("joint encoder, batch 2,048", "pairs/s", 130_000),
    ("search_batch, 64 texts x 100, token cache on the device", "pairs/s", 70_000),
    ("search, 100 candidates, p50, token cache on the device", "ms", 5),
    ("search, 1,000 candidates, p50, token cache on the device", "ms", 15),
)


def _gpu() -> Iterator[Target]:
    report = read("gpu")
    later = report.get("later", {}).get("rows", ())
    rows = {row["what"]: row for row in (*report.get("rows", ()), *later)}
    for what, unit, aim in _GPU_AIMS:
        row = rows.get(what)
        limit = "at most" if unit == "ms" else "at least"
        reached = None
        if row:
            reached = row["value"] <= aim if unit == "ms" else row["value"] >= aim
        yield (
            f"GPU: {what}: {limit} {aim:,} {unit}",
            f"{row['value']:,g}" if row else _NO_GPU,
            reached,
        )


def _search() -> Iterator[Target]:
    report = read("search_overhead")
    share, spent = report.get("outside_share"), report.get("outside_us")
    yield (
        "`search()` outside engine and models: 10 % of the whole, 100 candidates",
        f"{share:.1%}" if report else "",
        share <= 0.1 if report else None,
    )
    yield (
        "the same: 1 ms",
        f"{spent / 1000:.1f} ms; {report['outside_by_itself_us'] / 1000:.1f} ms if no model ran "
        "just before and filled the processor's caches"
        if report
        else "",
        spent <= 1000 if report else None,
    )


def _startup() -> Iterator[Target]:
    report = read("startup")
    rows = {row["what"]: row for row in report.get("rows", [])}
    for what, key, most, aim in (
        ("import edje_qdrant", "beyond_python_ms", 50, "50 ms beyond Python's own start"),
        ("edje-qdrant --help", "wall_ms", 500, "0.5 s"),
        (
            "from edje_qdrant import TwoStageRetriever",
            "processor_ms",
            2200,
            "2.2 s of processor time",
        ),
    ):
        row = rows.get(what)
        yield (
            f"`{what}`: {aim}",
            f"{row[key]:.0f} ms" if row else "",
            row[key] <= most if row else None,
        )
    opening = report.get("open")
    yield (
        "`open()` of 100,000 pictures: 1 s",
        f"{opening['wall_ms']:.0f} ms, {opening['pictures']:,} pictures" if opening else "",
        opening["wall_ms"] <= 1000 and opening["pictures"] >= 100_000 if opening else None,
    )


def _together() -> Iterator[Target]:
    report = read("concurrency")
    merged = report.get("merged_to_offline")
    yield (
        "32 clients at once: 0.9 of the rate of one batch",
        f"{merged:.2f}" if report else "",
        merged >= 0.9 if report else None,
    )
    for name, said in (("base", "SigLIP B/16's size"), ("demo", "the bundled one")):
        ratios = read(f"ingest_rate_{name}").get("ingest_to_encoder")
        best = max(ratios, key=lambda key: ratios[key]) if ratios else ""
        yield (
            f"ingest: 0.95 of the bare encoder's rate, {said}",
            f"{ratios[best]:.2f} ({best.replace('_', ' ')})" if ratios else "",
            ratios[best] >= 0.95 if ratios else None,
        )


def _growth() -> Iterator[Target]:
    rows = {row["size"]: row for row in read("growth").get("rows", [])}
    small, large = rows.get(10_000), rows.get(1_000_000)
    for key, what in (
        ("whole_ms", "a search, 64 x 384 tokens reranked,"),
        ("search_ms", "the first stage of it,"),
    ):
        times = large[key] / small[key] if small and large else None
        yield (
            f"{what} among 1,000,000 pictures: twice as long as among 10,000",
            f"x{times:.2f}" if times else "",
            times <= 2 if times else None,
        )
    if not large:
        yield "memory of a side file's reader does not grow with the file", "", None
        return
    own = large["store_memory_bytes"] / 1e6
    yield (
        "memory of a side file's reader does not grow with the file (1 % of it at most)",
        f"{own:.1f} MB of its own for a file of {large['side_bytes'] / 1e6:,.0f} MB",
        own * 1e6 <= 0.01 * large["side_bytes"],
    )


def _threads(count: int) -> str:
    return f"{count} thread" + ("s" if count > 1 else "")


if __name__ == "__main__":
    TABLE.write_text(page(), encoding="utf-8")
    for aim, found, reached in targets():
        mark = {True: "yes", False: "NO", None: "not run"}[reached]
        print(f"{mark:<8}{aim}: {found}")  # noqa: T201
