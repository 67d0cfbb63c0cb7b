"""Write the tables and plots of `storage.md` from `docs/results/`; a test fails on stale ones.

`codecs.json` there is the `eval.json` of `edje-qdrant eval scenes --in-memory --direction t2i
--num-candidates 50` with every codec, `token_fetch.json` comes from
`python benchmarks/token_fetch.py --out docs/results/token_fetch.json`, and `wide_tokens.json` from
`python benchmarks/wide_tokens.py`, whose help gives the whole command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from result_tables import RESULTS, read, sections, table

TABLES = RESULTS / "storage-tables.md"

# Sizes of the published model's tokens and of its encoder's embeddings.
NUM_TOKENS, TOKEN_DIM, EMBEDDING_DIM = 64, 384, 1024
SIZES = {"10,000": 10**4, "1 million": 10**6, "100 million": 10**8, "1 billion": 10**9}
LINKS = 32  # edje_qdrant/index/hnsw.py


def page() -> str:
    """Return the up-to-date tables, between the snippet markers that `storage.md` uses."""
    codecs, fetch = read("codecs"), read("token_fetch")
    parts = {
        "codecs": _codecs(codecs), "wide": _wide(read("wide_tokens")), "fetch": _fetch(fetch),
        "sizes": _sizes(fetch),
    }  # fmt: skip
    return sections(parts)


def _codecs(report: dict[str, Any]) -> str:
    heads = [
        "codec", "bytes a token", "bytes a picture", "R@1", "lost, points", "nDCG@10",
        "lost, points",
    ]  # fmt: skip
    rows = []
    for system in report["systems"]:
        found = system["reranked"]
        against = system["against"][0] if system["against"] else None
        rows.append(
            [
                f"`{_codec_of(system)}`",
                f"{system['bytes_per_picture'] / system['tokens_per_picture']:.0f}",
                f"{system['bytes_per_picture']:,}",
                f"{found['R@1']:.3f}",
                _lost(against, "R@1"),
                f"{found['nDCG@10']:.3f}",
                _lost(against, "nDCG@10"),
            ]
        )
    return table(heads, rows)


def _wide(report: dict[str, Any]) -> str:
    tokens = report["models"][0]["tokens"]
    rows = []
    for row in report["codecs"]:
        exact = row["codec"] == "float16"
        lost = _lost(None if exact else row, "R@1 changed")
        rows.append([
            f"`{row['codec']}`", f"{row['bytes'] / tokens:.0f}", f"{row['bytes']:,}",
            f"{row['R@1'][0]:.3f}", lost, "" if exact else f"{row['tau']:.3f}",
        ])  # fmt: skip
    heads = ["codec", "bytes a token", "bytes a picture", "R@1", "lost, points", "tau"]
    return table(heads, rows)


def _codec_of(system: dict[str, Any]) -> str:
    return str(system["model"]).rpartition(" ")[2]


def _lost(against: dict[str, Any] | None, metric: str) -> str:
    if against is None:
        return ""
    found = against[metric]
    mean, low, high = (_points(found[key]) for key in ("mean", "high", "low"))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def _points(gained: float) -> float:
    """Return a loss in percentage points, without a negative zero."""
    return round(-100 * gained, 1) + 0.0


def _fetch(report: dict[str, Any]) -> str:
    heads = [
        "where", "codec", "bytes a picture", "fetch, ms, warm", "in turn", "x memcpy", "decode, ms",
    ]  # fmt: skip
    rows = [
        [
            row["place"],
            f"`{row['codec']}`",
            f"{row['bytes_per_picture']:,}",
            f"{row['warm_fetch_ms']:.2f}",
            f"{row['fetch_ms']:.2f}",
            f"{row['fetch_to_memcpy']:.1f}",
            f"{row['decode_ms']:.2f}",
        ]
        for row in report["rows"]
    ]
    return table(heads, rows)


def _sizes(report: dict[str, Any]) -> str:
    nbytes = {row["codec"]: row["bytes_per_picture"] for row in report["rows"]}
    vector = 4 * EMBEDDING_DIM + 4 * 2 * LINKS
    rows = [
        [name, *(_size(count * each) for each in (vector, *nbytes.values()))]
        for name, count in SIZES.items()
    ]
    return table(["pictures", "vectors and graph", *(f"`{codec}`" for codec in nbytes)], rows)


def _size(nbytes: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}"
    return f"{nbytes / 1e3:.3g} kB"


def draw(path: Path) -> None:
    """Plot the R@1 lost with each codec against bytes a token and the time of a fetch."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    systems = [system for system in read("codecs")["systems"] if system["against"]]
    ms = {r["codec"]: r["fetch_ms"] + r["decode_ms"] for r in read("token_fetch")["rows"][::-1]}
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.8, 3.6), sharey=True, layout="constrained"
    )
    colours = plt.get_cmap("viridis")
    for place, system in enumerate(systems):
        codec = _codec_of(system)
        found = system["against"][0]["R@1"]
        lost, low, high = -100 * found["mean"], -100 * found["high"], -100 * found["low"]
        across = {
            left: system["bytes_per_picture"] / system["tokens_per_picture"], right: ms[codec],
        }  # fmt: skip
        for axes, x in across.items():
            axes.errorbar(
                x, lost, [[lost - low], [high - lost]], fmt="o", capsize=3, label=codec,
                color=colours(place / len(systems)),
            )  # fmt: skip
    left.set_xscale("log", base=2)
    left.set_xticks([16, 32, 64, 128], ["16", "32", "64", "128"])
    left.set_xlabel("bytes a token (float16: 256)")
    left.set_ylabel("R@1 lost, points, 1,000 scenes")
    right.set_xlabel("ms to fetch and decode 100 pictures of 64 x 384")
    right.set_xlim(left=0)
    right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    for axes in (left, right):
        axes.axhline(0, color="#70747e", linestyle="--", linewidth=1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    TABLES.write_text(page(), encoding="utf-8")
    draw(RESULTS / "codecs.png")
