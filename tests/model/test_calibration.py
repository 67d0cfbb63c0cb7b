from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edje_qdrant.errors import CheckpointError, ConfigError
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.calibration import (
    CALIBRATION_FILE,
    FIRST_LOOK,
    STEP,
    Calibration,
    _logistic,
    adaptive_stops,
    fit_calibration,
)

Arrays = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]


def made_up(queries: int = 600, count: int = 40, *, slope: float = 1.5, seed: int = 0) -> Arrays:
    """Return cosines, logits, and labels drawn from sigmoid(slope * logit - 2)."""
    rng = np.random.default_rng(seed)
    cosines = -np.sort(-rng.normal(0.1, 0.05, (queries, count)), axis=1)
    logits = rng.normal(-3, 3, (queries, count)) - 20 * (cosines[:, :1] - cosines)
    right = rng.random(logits.shape) < 1 / (1 + np.exp(-(slope * logits - 2)))
    return cosines.astype(np.float32), logits.astype(np.float32), right


def test_the_probability_is_that_of_what_was_seen() -> None:
    cosines, logits, right = made_up()
    # Every other query counts without its right images: as if there were none anywhere.
    logits[1::2] = np.where(right[1::2], -50, logits[1::2])
    right[1::2] = False
    kept = replace(fit_calibration(cosines[::2], logits[::2], right[::2], data="x"), margin=None)
    assert kept.probability(np.array([0.0])).shape == (1,)
    found = fit_calibration(cosines, logits, right, data="made up")
    probabilities = found.probability(logits)
    for low in (0.0, 0.2, 0.5):
        inside = (probabilities >= low) & (probabilities < low + 0.2)
        if inside.sum() > 300:
            assert probabilities[inside].mean() == pytest.approx(right[inside].mean(), abs=0.05)
    assert found.probability(found.cutoff) == pytest.approx(0.5)
    assert (found.queries, found.data) == (600, "made up")


def test_a_known_curve_is_found_again() -> None:
    _, logits, right = made_up(4000)
    slope, intercept = _logistic(logits.ravel().astype(np.float64), right.ravel())
    assert slope == pytest.approx(1.5, rel=0.03)
    assert intercept == pytest.approx(-2, rel=0.05)


def test_classes_that_do_not_overlap_still_give_a_curve() -> None:
    cosines, _, _ = made_up(40)
    right = np.zeros(cosines.shape, bool)
    right[:, 0] = True
    logits = np.where(right, 9.0, -9.0).astype(np.float32)
    found = fit_calibration(cosines, logits, right, data="x")
    assert np.isfinite([found.slope, found.intercept, found.cutoff]).all()
    assert found.probability(9.0) > 0.9 > 0.1 > found.probability(-9.0)


def test_stopping_early_loses_no_more_winners_than_promised() -> None:
    cosines, logits, right = made_up(800)
    saved = []
    for lost in (0.0, 0.01, 0.1):
        found = fit_calibration(cosines, logits, right, data="x", winners_lost=lost)
        stops = adaptive_stops(found, cosines, logits)
        assert float((logits.argmax(axis=1) >= stops).mean()) <= lost
        assert {*np.unique(stops)} <= {*range(FIRST_LOOK, 40, STEP), 40}
        saved.append(1 - stops.mean() / 40)
    assert 0 <= saved[0] <= saved[1] < saved[2]
    none = replace(found, margin=None)
    assert (adaptive_stops(none, cosines, logits) == 40).all()
    assert not none.settled(1e9, 1.0)


def test_the_rule_is_the_one_that_searches_follow() -> None:
    cosines, logits, right = made_up(50)
    found = fit_calibration(cosines, logits, right, data="x", winners_lost=0.1)
    for top_k in (1, 3, 12):
        stops = adaptive_stops(found, cosines, logits, top_k=top_k)
        for row, stop in enumerate(stops):
            place = max(FIRST_LOOK, top_k)
            while place < 40:
                last = np.sort(logits[row, :place])[-top_k]
                if found.settled(float(last), float(cosines[row, 0] - cosines[row, place])):
                    break
                place += STEP
            assert stop == min(place, 40)


def test_what_cannot_be_calibrated_is_said() -> None:
    cosines, logits, right = made_up(100)
    with pytest.raises(ConfigError, match="too few"):
        fit_calibration(cosines[:19], logits[:19], right[:19], data="x")
    for labels in (np.zeros_like(right), np.ones_like(right)):
        with pytest.raises(ConfigError, match="right"):
            fit_calibration(cosines[::2], logits[::2], labels[::2], data="x")
    with pytest.raises(ConfigError, match="no higher"):
        fit_calibration(cosines, -logits, right, data="x")
    for wrong in ({"cutoff_probability": 0}, {"cutoff_probability": 1.5}, {"winners_lost": 1}):
        with pytest.raises(ConfigError, match="between"):
            fit_calibration(cosines, logits, right, data="x", **wrong)


def test_it_goes_with_the_model(tmp_path: Path, tiny_folder: Path) -> None:
    model = EDJEModel.from_pretrained(tiny_folder)
    assert model.calibration is None
    found = fit_calibration(*made_up(60), data="x")
    model.calibration = found
    model.save_pretrained(tmp_path / "model")
    again = EDJEModel.from_pretrained(tmp_path / "model")
    assert again.calibration == found
    again.calibration = None
    again.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / CALIBRATION_FILE).exists()
    found.save(tmp_path / "model")
    assert Calibration.load(tmp_path / "model") == found


def test_training_forgets_it(tmp_path: Path, tiny_folder: Path) -> None:
    from edje_qdrant.training.build import build_model
    from edje_qdrant.training.recipe import ModelSection

    model = EDJEModel.from_pretrained(tiny_folder)
    model.calibration = fit_calibration(*made_up(60), data="x")
    model.save_pretrained(tmp_path / "model")
    assert build_model(ModelSection(start_from=str(tmp_path / "model"))).calibration is None


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"slope": None},
        {"slope": float("nan")},
        {"cutoff": "high"},
        {"margin": float("inf")},
        {"more": 1},
    ],
)
def test_a_damaged_one_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    fit_calibration(*made_up(60), data="x").save(tmp_path)
    path = tmp_path / CALIBRATION_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match="calibrate again"):
        Calibration.load(tmp_path)


def test_one_that_is_no_json_or_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / CALIBRATION_FILE).write_text("{")
    with pytest.raises(CheckpointError):
        Calibration.load(tmp_path)
    with pytest.raises(CheckpointError, match="may write"):
        fit_calibration(*made_up(60), data="x").save(tmp_path / "none")


def test_the_bundled_model_has_one() -> None:
    found = EDJEModel.from_pretrained("demo").calibration
    assert found is not None
    assert found.data == "scenes"
    assert found.queries >= 900


def test_a_file_without_a_number_of_words_covers_every_text(tmp_path: Path) -> None:
    kept = Calibration(1.0, 0.0, 0.0, 0.0, 0.0, 1.0, None, 20, 100, "a test", least_words=3)
    kept.save(tmp_path)
    assert Calibration.load(tmp_path) == kept
    assert kept.covers("a red star")
    assert not kept.covers("stars")
    path = tmp_path / "calibration.json"
    data = json.loads(path.read_text())
    del data["least_words"]
    path.write_text(json.dumps(data))
    found = Calibration.load(tmp_path)
    assert found is not None
    assert found.covers("stars")
