"""Benchmarks on annotated sets in which several images have one name."""

from __future__ import annotations

import importlib
import json
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from edje_qdrant import EDJEModel
from edje_qdrant.data.annotations import Annotation

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benchmark(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(request.param)


@pytest.mark.parametrize("benchmark", ["emoji"], indirect=True)
@pytest.mark.parametrize(
    ("shown", "right", "kind"),
    [
        ("👩🏽‍🚒", "👩🏿‍🚒", "skin tone"),
        ("👨🏽‍🚒", "👩🏽‍🚒", "gender"),
        ("🏃🏽‍♀", "🏃🏽", "gender"),
        ("👨🏽‍🚒", "👩🏿‍🚒", "skin tone and gender"),
        ("👩🏽‍🦰", "👩🏽‍🦳", "hair"),
        ("🏃🏽‍♀‍➡", "🏃🏽‍♀", "direction"),
        ("👩🏽‍🚒", "👩🏽‍🚀", "another emoji"),
        ("🇦🇩", "🇷🇴", "another flag"),
        ("🟦", "🟥", "another emoji"),
    ],
)
def test_a_wrong_hit_is_of_the_kind_in_which_it_differs(
    benchmark: ModuleType, shown: str, right: str, kind: str
) -> None:
    assert benchmark.kind_of(shown, right) == kind


@pytest.mark.parametrize("benchmark", ["emoji"], indirect=True)
def test_every_image_with_a_name_is_right(benchmark: ModuleType) -> None:
    nothing = np.empty((3, 0), np.float32)
    pool = benchmark.Pool(["a.png", "b.png", "c.png"], nothing, nothing.astype(np.float16))
    images = [
        Annotation("c.png", ("Red  circle",), "x:1"),
        Annotation("a.png", ("red circle",), "x:2"),
        Annotation("b.png", ("moon",), "x:3"),
    ]
    assert benchmark.owners_of(images, pool) == {"Red  circle": (0, 2), "moon": (1,)}


@pytest.mark.parametrize("benchmark", ["second_look"], indirect=True)
def test_a_second_look_finds_any_image_with_the_name(benchmark: ModuleType, tmp_path: Path) -> None:
    lines = []
    for number, name in enumerate(["a disc", "a star", "A disc"]):
        Image.new("RGB", (32, 32), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "caption": name}))
    (tmp_path / "set.jsonl").write_text("\n".join(lines))
    model = EDJEModel.from_pretrained("demo")
    world = benchmark.annotated(model, tmp_path / "set.jsonl", Namespace(images=None))
    assert world.texts == ["a disc", "a star"]
    assert world.right.tolist() == [[True, False, True], [False, True, False]]
    assert benchmark.recall(world, np.array([[2, 1], [0, 2]])).tolist() == [1.0, 0.0]
