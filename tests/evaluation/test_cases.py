from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from eval_rankings import make_rankings
from PIL import Image

from edje_qdrant.errors import StoreError
from edje_qdrant.evaluation.cases import draw_worst, worst, write_cases
from edje_qdrant.evaluation.rankings import Rankings, places


def one_query(place: int, joint: list[float]) -> Rankings:
    """One query whose right answer stands at a place (from 0) of the first stage."""
    base = make_rankings(queries=1, depth=len(joint), pool=len(joint))
    candidates = np.arange(len(joint))[None]
    return replace(
        base,
        candidates=candidates,
        joint=np.array([joint], np.float32),
        right=candidates == place,
        rights=[(place,)],
    )


def test_every_query_is_on_a_line_with_its_fate(tmp_path: Path) -> None:
    rankings = make_rankings(good=1.0)
    write_cases(rankings, 10, tmp_path / "cases.jsonl")
    cases = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    assert [case["query"] for case in cases] == list(rankings.queries)
    assert [case["first_rank"] for case in cases] == places(rankings.right)
    assert [case["final_rank"] for case in cases] == places(rankings.right_after(10))
    assert {case["change"] for case in cases} == {"win", "loss", "same"}
    for case in cases:
        first, final = case["first_rank"], case["final_rank"]
        assert (case["joint_score"] is None) == (final is None)
        if case["change"] == "win":
            assert final < first
        elif case["change"] == "loss":
            assert final > first
        else:
            assert final == first
        if final == 1:
            assert [case["top"]["answer"]] == case["right"]
            assert case["top"]["joint_score"] == case["joint_score"]


def test_scores_are_those_of_the_right_answer(tmp_path: Path) -> None:
    rankings = one_query(1, [0.5, 0.25, 2.0])
    write_cases(rankings, 3, tmp_path / "cases.jsonl")
    case = json.loads((tmp_path / "cases.jsonl").read_text())
    assert (case["first_rank"], case["final_rank"], case["change"]) == (2, 3, "loss")
    assert case["joint_score"] == 0.25
    assert case["first_score"] == pytest.approx(float(rankings.first[0, 1]), abs=1e-6)
    assert case["top"]["answer"] == rankings.answers[2]


def test_a_fall_from_the_top_is_the_worst() -> None:
    rankings = make_rankings(queries=200, good=1.0)
    before, after = places(rankings.right), places(rankings.right_after(20))
    chosen = worst(rankings, 20, 10)
    assert len(chosen) == 10
    lost = [1 / after[q] - 1 / before[q] for q in chosen]
    assert lost == sorted(lost)
    assert before[chosen[0]] == 1
    assert all(after[query] not in (1, None) for query in worst(rankings, 20, 200))


def test_the_sheet_shows_the_worst_and_is_left_out_where_all_is_well(tmp_path: Path) -> None:
    paths = []
    for number in range(40):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.new("RGB", (40, 30), (6 * number, 80, 90)).save(paths[-1])
    rankings = make_rankings(good=1.0, answers=paths)
    assert draw_worst(rankings, 20, tmp_path / "worst.png", count=3)
    with Image.open(tmp_path / "worst.png") as sheet:
        three = sheet.height
    assert draw_worst(rankings, 20, tmp_path / "worst.png", count=4)
    with Image.open(tmp_path / "worst.png") as sheet:
        assert sheet.height > three
    assert not draw_worst(make_rankings(good=1000.0), 25, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_folder_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot write"):
        write_cases(make_rankings(), 5, tmp_path / "nowhere" / "cases.jsonl")
    with pytest.raises(StoreError, match="cannot draw"):
        draw_worst(make_rankings(good=1.0), 20, tmp_path / "nowhere" / "worst.png")
