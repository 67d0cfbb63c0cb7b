from __future__ import annotations

import json
from dataclasses import replace

import pytest
from eval_rankings import make_rankings

from edje_qdrant.evaluation.metrics_table import Measured, compare_systems
from edje_qdrant.evaluation.protocol import PROTOCOLS
from edje_qdrant.evaluation.report import Evaluation
from edje_qdrant.types import FailedImage


@pytest.fixture
def evaluation() -> Evaluation:
    systems = []
    for direction in ("t2i", "i2t"):
        measured = [
            Measured(
                name, 16, 4096, make_rankings(good=good, direction=direction), {5: 4.25}, "float32"
            )
            for name, good in (("first", 1.0), ("second", 4.0))
        ]
        systems += compare_systems(measured, [5, 20], resamples=30, seed=0)
    return Evaluation(
        data="flickr.json",
        split="test",
        protocol=PROTOCOLS["karpathy"],
        in_memory=False,
        images=40,
        captions=200,
        failed=tuple(FailedImage(f"/x/{n}.jpg", "no such file") for n in range(12)),
        lost_captions=60,
        twins=2,
        strangers=3,
        systems=tuple(systems),
        files={"json": "out/eval.json", "cases": ["out/a.jsonl"], "sheets": [], "plots": ["p.png"]},
        seconds=3.21,
    )


def test_the_text_has_every_system_and_what_was_left_out(evaluation: Evaluation) -> None:
    text = evaluation.text()
    assert "flickr.json, split test: 40 images, 200 captions, Karpathy protocol" in text
    assert "12 images cannot be read; they and their 60 captions are left out" in text
    assert "/x/9.jpg: no such file" in text
    assert "/x/10.jpg" not in text
    assert "and 2 more" in text
    assert "2 files have the bytes of another" in text
    assert "3 images that no annotation names; they take part as wrong answers" in text
    assert "Text to image: 30 captions asked of 40 images" in text
    assert "Image to text: 30 images asked of 40 captions" in text
    for system in evaluation.systems:
        (low, high) = system.intervals["reranked"]["R@1"]
        assert f"{system.reranked['R@1']:.1%} [{100 * low:.1f}, {100 * high:.1f}]" in text
    assert text.count("first stage") == 4
    assert "over first" in text
    assert "R@20" not in text
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "p.png" in text


def test_the_full_pools_table_shows_other_cuts(evaluation: Evaluation) -> None:
    text = replace(evaluation, protocol=PROTOCOLS["full"], split=None).text()
    assert "R@20" in text
    assert "R@1 " not in text
    assert "flickr.json: 40 images" in text


def test_without_plots_it_says_what_to_install(evaluation: Evaluation) -> None:
    text = replace(evaluation, files={**evaluation.files, "plots": []}).text()
    assert "edje-qdrant[train]" in text


def test_the_report_is_a_json_object(evaluation: Evaluation) -> None:
    data = json.loads(json.dumps(evaluation.as_dict()))
    assert len(data["systems"]) == 8
    assert len(data["failed"]) == 12
    assert data["protocol"] == "karpathy"
    assert data["files"]["json"] == "out/eval.json"
