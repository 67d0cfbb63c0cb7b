from __future__ import annotations

import sys
from pathlib import Path

import pytest
from eval_rankings import make_rankings
from PIL import Image

from edje_qdrant.errors import MissingExtraError
from edje_qdrant.evaluation.metrics_table import Measured, System, compare_systems
from edje_qdrant.evaluation.plots import draw_plots


def systems(models: int, numbers: list[int], *, timed: bool = True) -> list[System]:
    times = {n: 0.7 * n for n in numbers} if timed else {}
    found = []
    for direction in ("t2i", "i2t"):
        measured = [
            Measured(f"model {m}", 16 * (m + 1), 4096 * (m + 1),
                     make_rankings(good=2.0 + m, direction=direction), times, "float32")
            for m in range(models)
        ]  # fmt: skip
        found += compare_systems(measured, numbers, resamples=20, seed=0)
    return found


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (systems(1, [10]), ["recall.png"]),
        (systems(1, [5, 10, 20], timed=False), ["recall.png", "candidates.png"]),
        (systems(1, [5, 10, 20]), ["recall.png", "candidates.png", "cost.png"]),
        (systems(2, [10], timed=False), ["recall.png", "cost.png"]),
        (systems(3, [5, 20]), ["recall.png", "candidates.png", "cost.png"]),
    ],
)
def test_there_is_a_plot_for_what_varies(
    tmp_path: Path, found: list[System], names: list[str]
) -> None:
    (tmp_path / "cost.png").write_bytes(b"of an earlier run")
    assert [path.name for path in draw_plots(found, tmp_path)] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    for name in names:
        with Image.open(tmp_path / name) as plot:
            assert plot.width > 700
            assert len(plot.convert("RGB").getcolors(1 << 24) or []) > 20


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"edje-qdrant\[train\]"):
        draw_plots(systems(1, [10]), tmp_path)
