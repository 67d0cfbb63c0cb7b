from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from eval_rankings import make_rankings

from edje_qdrant.data.annotations import read_annotations
from edje_qdrant.demo.annotated import scene_matches, write_scenes
from edje_qdrant.errors import ConfigError
from edje_qdrant.evaluation.calibrate import accepts, calibrate, with_matches, word_shares
from edje_qdrant.model import EDJEModel


def test_accepts_are_counted_by_hand() -> None:
    rankings = make_rankings(queries=3, depth=4, pool=4)
    rankings = replace(
        rankings,
        right=np.array([[0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]], bool),
        joint=np.array([[0, 5, 1, 2], [3, 0, 0, 1], [9, 4, 0, 0]], np.float32),
    )
    found = accepts(rankings, rankings.joint, rankings.joint >= 3)
    # Right and best in the first and the last; without them the best are 2, 3 and 4.
    assert found.true == pytest.approx(2 / 3)
    assert found.false == pytest.approx(2 / 3)
    # No false accept at all needs more than 4, which 5 and 9 are.
    assert found.true_at == {share: pytest.approx(2 / 3) for share in ("0.01", "0.05", "0.1")}


def test_right_pairs_of_each_word_are_counted_by_hand() -> None:
    rankings = make_rankings(queries=3, depth=4, pool=4)
    right = np.array([[1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], bool)
    probabilities = np.array([[0.9, 0.5, 0.49, 0.0], [0.9, 0.8, 0.3, 0.1], [0.2, 0.2, 0.1, 0.05]])
    found = word_shares(probabilities, replace(rankings, right=right))
    # The second query counts without its right image.
    assert {word: (each.pairs, each.right) for word, each in found.items()} == {
        "good": (3, pytest.approx(1 / 3)),
        "possible": (6, pytest.approx(1 / 6)),
        "weak": (2, 0.5),
    }
    assert word_shares(probabilities + 1, rankings)["weak"].right is None


def test_all_pictures_a_caption_is_true_of_are_right() -> None:
    rankings = make_rankings(queries=4, depth=5, pool=6)
    path = rankings.answers[int(rankings.candidates[2, 3])]
    found = with_matches(rankings, {"query 2": {path}, "nobody's": {path}})
    changed = np.argwhere(found.right != rankings.right)
    assert changed.tolist() in ([[2, 3]], [])
    assert found.right[2, 3]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), count=60, seed=3, progress=False)


def test_scenes_match_their_own_captions_and_few_others(scenes: Path) -> None:
    matches = scene_matches(scenes.parent, count=60, seed=3)
    annotations = read_annotations(scenes)
    for annotation in annotations:
        assert annotation.image in matches[annotation.captions[0]]
    sizes = [len(matches[annotation.captions[0]]) for annotation in annotations]
    assert np.mean(sizes) < 1.5


def test_the_bundled_model_is_calibrated_on_scenes(scenes: Path) -> None:
    model = EDJEModel.from_pretrained("demo")
    report = calibrate(
        model,
        read_annotations(scenes),
        data="sixty scenes",
        matches=scene_matches(scenes.parent, count=60, seed=3),
        num_candidates=20,
        limit=40,
    )
    found = report.calibration
    assert (found.queries, found.data) == (40, "sixty scenes")
    assert found.slope > 0
    assert 6 <= found.least_words <= 10
    assert found.covers("a huge black star on the left of a white moon")
    assert not found.covers("a red star")
    assert (model.calibration or found).least_words == 8
    assert (report.words["good"].right or 0) > 0.6
    assert (report.words["weak"].right or 0) < 0.05
    assert "good match      (50% or more)" in report.text()
    assert 0 <= report.brier < 0.03
    assert report.joint.true_at["0.1"] > 0.8
    assert f"{found.queries} queries" in report.text()
    assert report.as_dict()["calibration"]["cutoff"] == found.cutoff
    assert model.calibration != found  # the model is left as it is


def test_what_is_too_little_is_refused(scenes: Path, tiny_model: EDJEModel) -> None:
    annotations = read_annotations(scenes)
    with pytest.raises(ConfigError, match="num_candidates"):
        calibrate(tiny_model, annotations, data="x", num_candidates=5)
    with pytest.raises(ConfigError, match="too few"):
        calibrate(tiny_model, annotations, data="x", num_candidates=10, limit=15)
