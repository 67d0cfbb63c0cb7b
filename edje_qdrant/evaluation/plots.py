"""Plots of an evaluation: recall, recall against candidates, and recall against cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edje_qdrant.errors import MissingExtraError
from edje_qdrant.evaluation.metrics_table import System
from edje_qdrant.files import os_errors_as_store_errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_plots"]

_TITLES = {"t2i": "Text to image", "i2t": "Image to text"}
_COLOURS = ("#1f6fb2", "#d1661f", "#2a9361", "#8a4fa3", "#b03a48", "#6b7280")
_INK, _SOFT, _GRID = "#1c1e24", "#70747e", "#e6e6e2"
_CUTS = ("R@1", "R@5", "R@10")


def draw_plots(systems: Sequence[System], folder: Path) -> list[Path]:
    """Draw the plots of an evaluation and return the PNG files.

    `recall.png`: R@1/5/10 of both stages at the largest number of candidates. `candidates.png`,
    if there are several numbers of candidates: R@1 against candidates. `cost.png`, if systems
    differ in cost: R@1 against milliseconds, tokens and bytes. Error bars and bands are the
    bootstrap's intervals.

    Args:
        systems: All systems of one evaluation.
        folder: The folder to write to.

    Raises:
        MissingExtraError: matplotlib is not installed.
        StoreError: A file cannot be written.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("matplotlib", "train") from error
    drawn = {
        "recall.png": _draw_recall(systems),
        "candidates.png": _draw_sweep(systems),
        "cost.png": _draw_cost(systems),
    }
    written = []
    for name, figure in drawn.items():
        path = folder / name
        with os_errors_as_store_errors("draw", path):
            path.unlink(missing_ok=True)
            if figure is not None:
                figure.savefig(path, dpi=150)
                written.append(path)
    return written


def _draw_recall(systems: Sequence[System]) -> Figure:
    directions = _directions(systems)
    figure, panels = _panels(len(directions))
    for axes, direction in zip(panels, directions, strict=True):
        final = [_of_model(systems, direction, m)[-1] for m in _models(systems)]
        bars: list[tuple[str, str, Any, Any, bool]] = []
        for n, system in enumerate(final):
            several = len(final) > 1
            colour = _COLOURS[n % len(_COLOURS)]
            name = f"{system.model}, " if several else ""
            stages = (
                (f"{name}first stage", _lighter(colour)),
                (f"{name}{system.num_candidates} reranked", colour),
            )
            values = (system.first_stage, system.reranked)
            ends = (system.intervals["first_stage"], system.intervals["reranked"])
            bars += [
                (label, tone, value, end, not several or tone == colour)
                for (label, tone), value, end in zip(stages, values, ends, strict=True)
            ]
        width = 0.8 / len(bars)
        for n, (label, colour, value, end, numbered) in enumerate(bars):
            x = [c + (n - (len(bars) - 1) / 2) * width for c in range(len(_CUTS))]
            height = [100 * value[cut] for cut in _CUTS]
            low = [max(0.0, h - 100 * end[cut][0]) for h, cut in zip(height, _CUTS, strict=True)]
            high = [max(0.0, 100 * end[cut][1] - h) for h, cut in zip(height, _CUTS, strict=True)]
            axes.bar(x, height, 0.92 * width, color=colour, label=label)
            axes.errorbar(x, height, [low, high], fmt="none", ecolor=_INK, elinewidth=1, capsize=2)
            for at, top, up in zip(x, height, high, strict=True):
                if not numbered:
                    continue
                axes.annotate(
                    f"{top:.1f}", (at, top + up), (0, 3), textcoords="offset points",
                    ha="center", fontsize=8, color=_INK,
                )  # fmt: skip
        axes.set_xticks(range(len(_CUTS)), _CUTS)
        axes.set_ylim(0, 112)
        axes.set_yticks(range(0, 101, 20))
        axes.set_title(_title(final[0]), loc="left", fontsize=11, color=_INK)
        axes.set_ylabel("queries answered, %")
    _legend(figure, panels[0], len(_models(systems)))
    return figure


def _draw_sweep(systems: Sequence[System]) -> Figure | None:
    directions = [d for d in _directions(systems) if len(_numbers(systems, d)) > 1]
    if not directions:
        return None
    figure, panels = _panels(len(directions))
    for axes, direction in zip(panels, directions, strict=True):
        numbers = _numbers(systems, direction)
        for n, model in enumerate(_models(systems)):
            own = _of_model(systems, direction, model)
            colour = _COLOURS[n % len(_COLOURS)]
            name = f"{model}, " if len(_models(systems)) > 1 else ""
            x = [s.num_candidates for s in own]
            ends = [s.intervals["reranked"]["R@1"] for s in own]
            axes.fill_between(
                x, [100 * low for low, _ in ends], [100 * high for _, high in ends],
                color=colour, alpha=0.15, linewidth=0,
            )  # fmt: skip
            axes.plot(x, _r1(own), "o-", color=colour, markersize=5, label=f"{name}reranked")
            axes.axhline(
                100 * own[0].first_stage["R@1"],
                color=colour, linestyle=(0, (4, 3)), linewidth=1.2, label=f"{name}first stage",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks(numbers, [f"{number}" for number in numbers])
        axes.minorticks_off()
        axes.set_title(_title(_of(systems, direction)[0]), loc="left", fontsize=11, color=_INK)
        axes.set_xlabel("candidates reranked")
        axes.set_ylabel("R@1, %")
    _legend(figure, panels[0], len(_models(systems)))
    return figure


def _draw_cost(systems: Sequence[System]) -> Figure | None:
    """Draw R@1 against each cost in which the systems differ."""
    direction = _directions(systems)[0]
    own = _of(systems, direction)
    costs: list[tuple[str, Callable[[System], float | None]]] = [
        ("milliseconds a query", lambda system: system.ms_per_query),
        ("tokens an image", lambda system: system.tokens_per_image),
        ("bytes an image", lambda system: system.bytes_per_image),
    ]
    shown = [
        (name, cost)
        for name, cost in costs
        if len({cost(s) for s in own}) > 1 and all(cost(s) is not None for s in own)
    ]
    if not shown:
        return None
    figure, panels = _panels(len(shown))
    for axes, (name, cost) in zip(panels, shown, strict=True):
        for n, model in enumerate(_models(systems)):
            line = _of_model(systems, direction, model)
            if len({cost(s) for s in line}) == 1:
                line = line[-1:]
            x = [float(cost(s) or 0) for s in line]
            values = _r1(line)
            ends = [s.intervals["reranked"]["R@1"] for s in line]
            low = [max(0.0, v - 100 * end[0]) for v, end in zip(values, ends, strict=True)]
            high = [max(0.0, 100 * end[1] - v) for v, end in zip(values, ends, strict=True)]
            axes.errorbar(
                x, values, [low, high], fmt="o-" if len(set(x)) > 1 else "o", label=model,
                color=_COLOURS[n % len(_COLOURS)], markersize=5, elinewidth=1, capsize=2,
            )  # fmt: skip
            for at, value, system in zip(x, values, line, strict=True):
                axes.annotate(
                    f"{system.num_candidates}", (at, value), (6, -11), textcoords="offset points",
                    fontsize=8, color=_SOFT,
                )  # fmt: skip
        axes.set_xlim(left=0)
        axes.margins(x=0.12)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_title(_title(own[0]), loc="left", fontsize=11, color=_INK)
        axes.set_xlabel(f"{name} (beside each point: candidates reranked)")
        axes.set_ylabel("R@1, %")
    if len(_models(systems)) > 1:
        _legend(figure, panels[0], len(_models(systems)))
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4 * count + 0.4, 4.2), layout="constrained", facecolor="white")
    panels = [figure.add_subplot(1, count, n + 1) for n in range(count)]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_SOFT)
        axes.grid(axis="y", color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=_SOFT, labelsize=9)
        axes.xaxis.label.set_color(_SOFT)
        axes.yaxis.label.set_color(_SOFT)
    return figure, panels


def _legend(figure: Figure, axes: Axes, models: int) -> None:
    """Draw the legend below the panels, with one column for each model if there are several."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=models if models > 1 else len(labels),
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
    )


def _lighter(colour: str) -> str:
    """Mix a `#rrggbb` colour with two thirds of white."""
    channels = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{channel + (255 - channel) * 2 // 3:02x}" for channel in channels)


def _title(system: System) -> str:
    return f"{_TITLES[system.direction]}: {system.queries:,} queries, {system.pool:,} to find"


def _r1(systems: Sequence[System]) -> list[float]:
    return [100 * system.reranked["R@1"] for system in systems]


def _directions(systems: Sequence[System]) -> list[str]:
    return list(dict.fromkeys(system.direction for system in systems))


def _models(systems: Sequence[System]) -> list[str]:
    return list(dict.fromkeys(system.model for system in systems))


def _of(systems: Sequence[System], direction: str) -> list[System]:
    return [system for system in systems if system.direction == direction]


def _of_model(systems: Sequence[System], direction: str, model: str) -> list[System]:
    return [system for system in _of(systems, direction) if system.model == model]


def _numbers(systems: Sequence[System], direction: str) -> list[int]:
    return sorted({system.num_candidates for system in _of(systems, direction)})
