"""Calibration of logits: the probability of a match, and when scoring may stop early.

A logit only ranks the candidates of one query. Whether the best of them is right at all, and
whether an image far down the first stage's ranking could still win, is fitted to labelled pairs and
saved beside the model's weights.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import CheckpointError, ConfigError
from edje_qdrant.files import write_atomically

__all__ = [
    "CALIBRATION_FILE",
    "FIRST_LOOK",
    "MATCH_WORDS",
    "STEP",
    "Calibration",
    "MatchWord",
    "adaptive_stops",
    "fit_calibration",
    "match_word",
]

#: Name of the file in a model's folder.
CALIBRATION_FILE = "calibration.json"

#: Candidates scored before the first check whether to stop, and between checks.
FIRST_LOOK = STEP = 8

#: How well a text and an image match, in a word.
MatchWord: TypeAlias = Literal["good", "possible", "weak"]

#: Word -> least probability of a match, best word first. A probability is the share of right pairs
#: among those like it, so that most good matches are right, some possible ones are, and hardly any
#: weak ones. `calibrate` measures these shares.
MATCH_WORDS: dict[MatchWord, float] = {"good": 0.5, "possible": 0.1, "weak": 0.0}

_FORMAT = 1
_ROUNDS = 100
# Margins to try, in spreads. If even the largest fails, scoring never stops early.
_MARGINS = np.arange(-4.0, 8.01, 0.1)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What one model's logits mean on data like that of the fit.

    Attributes:
        slope: The probability of a match is sigmoid(slope * logit + intercept).
        intercept: See `slope`.
        cutoff: The logit that `min_score="auto"` cuts at.
        gap_slope: The expected logit of a candidate whose cosine is `gap` below the first's is
            gap_slope * gap + gap_intercept.
        gap_intercept: See `gap_slope`.
        spread: Standard deviation of logits around that expectation.
        margin: Scoring stops when the best logit is this many spreads above the expectation; None
            if no margin keeps the promised share of winners.
        queries: Number of queries of the fit.
        pairs: Number of text-image pairs of the fit.
        data: Description of the data.
        least_words: Number of words from which texts are like those of the fit; 1 if it is not
            known. A text that says less fits more images, and its logits are lower.
    """

    slope: float
    intercept: float
    cutoff: float
    gap_slope: float
    gap_intercept: float
    spread: float
    margin: float | None
    queries: int
    pairs: int
    data: str
    least_words: int = 1

    def covers(self, text: str) -> bool:
        """Return whether a text is like those of the fit, so that its probabilities hold."""
        return len(text.split()) >= self.least_words

    def probability(self, logits: NDArray[np.floating[Any]] | float) -> NDArray[np.float64]:
        """Return the probability of a match for each logit, in the logits' shape."""
        linear = self.slope * np.asarray(logits, np.float64) + self.intercept
        return _sigmoid(linear)

    def settled(self, best: float, gap: float) -> bool:
        """Return whether candidates `gap` or more below the first in cosine need no scoring.

        Args:
            best: Lowest logit among the images that would be returned so far.
            gap: Cosine of the first candidate minus that of the next one to score.
        """
        if self.margin is None:
            return False
        return best >= self.gap_slope * gap + self.gap_intercept + self.margin * self.spread

    def save(self, folder: Path) -> None:
        """Save it in a model's folder.

        Raises:
            CheckpointError: The folder cannot be written.
        """
        path = folder / CALIBRATION_FILE
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=2) + "\n"
        try:
            write_atomically(path, text.encode())
        except OSError as error:
            raise CheckpointError(
                f"cannot write {path} ({error}); choose a folder you may write to", path=str(path)
            ) from error

    @classmethod
    def load(cls, folder: Path) -> Calibration | None:
        """Read it from a model's folder; None if the folder has none.

        Raises:
            CheckpointError: The file is damaged or of another version.
        """
        path = folder / CALIBRATION_FILE
        if not path.exists():
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            version = data.pop("format")
            names = {field.name for field in fields(cls)}
            # Absent in files of earlier versions.
            if version != _FORMAT or {*data, "least_words"} != names:
                raise ValueError(f"format {version!r} with {sorted(data)}")
            numbers = [value for key, value in data.items() if key not in ("data", "margin")]
            if not all(math.isfinite(number) for number in numbers):
                raise ValueError("a number is not finite")
            if data["margin"] is not None and not math.isfinite(data["margin"]):
                raise ValueError("the margin is not finite")
            return cls(**data)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"cannot read {path} ({error}); delete it, or run edje-qdrant calibrate again",
                path=str(path),
            ) from error


@overload
def match_word(probability: float) -> MatchWord: ...
@overload
def match_word(probability: float | None) -> MatchWord | None: ...
def match_word(probability: float | None) -> MatchWord | None:
    """Return how well a text and an image match, in a word; None without a probability.

    Example:
        >>> from edje_qdrant.model.calibration import match_word
        >>> [match_word(p) for p in (0.83, 0.19, 0.02, None)]
        ['good', 'possible', 'weak', None]
    """
    if probability is None:
        return None
    return next(word for word, least in MATCH_WORDS.items() if probability >= least)


def fit_calibration(
    cosines: NDArray[np.float32],
    logits: NDArray[np.float32],
    right: NDArray[np.bool_],
    *,
    data: str,
    cutoff_probability: float = 0.5,
    winners_lost: float = 0.002,
) -> Calibration:
    """Fit a calibration to `n` candidates of each of `q` queries, in first-stage order.

    Probability: Platt's method, a logistic curve fitted by maximum likelihood to smoothed targets.
    Every second query is used without its right images, as if the collection had none.

    Early stop: the smallest margin with which at most the share `winners_lost` of queries would
    miss their best image.

    Args:
        cosines: `(q, n)` first-stage scores, descending in each row.
        logits: `(q, n)` joint encoder scores.
        right: `(q, n)` bool: whether a candidate is a right answer.
        data: Description of queries and images, saved with the fit.
        cutoff_probability: Probability at which `min_score="auto"` cuts.
        winners_lost: Share of queries whose best image may be missed by stopping early.

    Raises:
        ConfigError: There are too few queries, all candidates are right or all wrong, or an
            argument is out of range.

    Source: Platt, Probabilistic Outputs for Support Vector Machines, 1999.
    """
    if not 0 < cutoff_probability < 1 or not 0 <= winners_lost < 1:
        raise ConfigError(
            f"the cutoff's probability is {cutoff_probability} and the share of winners lost "
            f"{winners_lost}; give one between 0 and 1, and one of 0 or more below 1"
        )
    if len(logits) < 20:
        raise ConfigError(f"{len(logits)} queries are too few to calibrate on; give 20 or more")
    absent = np.arange(len(logits)) % 2 == 1
    kept = ~(absent[:, None] & right)
    labels, said = (right & ~absent[:, None])[kept], logits[kept].astype(np.float64)
    if labels.all() or not labels.any():
        raise ConfigError(
            f"{int(labels.sum())} of {labels.size} candidates are right; a fit needs right and "
            "wrong ones: check that captions belong to their images"
        )
    slope, intercept = _logistic(said, labels)
    if slope <= 0:
        raise ConfigError(
            "right images score no higher than wrong ones, so there is nothing to calibrate: "
            "the model does not know these images"
        )
    odds = math.log(cutoff_probability / (1 - cutoff_probability))
    gaps = cosines[:, :1] - cosines
    gap_slope, gap_intercept, spread = _line(gaps.ravel(), logits.ravel())
    fitted = Calibration(
        slope=slope,
        intercept=intercept,
        cutoff=(odds - intercept) / slope,
        gap_slope=gap_slope,
        gap_intercept=gap_intercept,
        spread=spread,
        margin=None,
        queries=len(logits),
        pairs=int(kept.sum()),
        data=data,
    )
    return _with_margin(fitted, cosines, logits, winners_lost)


def adaptive_stops(
    calibration: Calibration,
    cosines: NDArray[np.float32],
    logits: NDArray[np.float32],
    *,
    top_k: int = 1,
) -> NDArray[np.int64]:
    """Return `(q,)`: how many of `n` candidates a search with `adaptive=True` would score.

    Args:
        calibration: The rule to stop.
        cosines: `(q, n)` first-stage scores, descending in each row.
        logits: `(q, n)` joint encoder scores.
        top_k: Number of hits returned.
    """
    queries, count = logits.shape
    stops = np.full(queries, count)
    if calibration.margin is None:
        return stops
    gaps = cosines[:, :1] - cosines  # (q, n)
    bounds = calibration.gap_slope * gaps + calibration.gap_intercept
    bounds = bounds + calibration.margin * calibration.spread
    for place in reversed(range(max(FIRST_LOOK, top_k), count, STEP)):
        last_shown = np.partition(logits[:, :place], -top_k, axis=1)[:, -top_k]
        stops[last_shown >= bounds[:, place]] = place
    return stops


def _with_margin(
    fitted: Calibration,
    cosines: NDArray[np.float32],
    logits: NDArray[np.float32],
    winners_lost: float,
) -> Calibration:
    winners = logits.argmax(axis=1)
    for margin in _MARGINS:
        tried = replace(fitted, margin=round(float(margin), 1))
        lost = winners >= adaptive_stops(tried, cosines, logits)
        if float(lost.mean()) <= winners_lost:
            return tried
    return fitted


def _line(x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]]) -> tuple[float, float, float]:
    """Fit a least-squares line; return slope, intercept and the residuals' standard deviation."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / max(((x - x.mean()) ** 2).sum(), 1e-12))
    # A larger gap must not count as more likely.
    slope = min(slope, 0.0)
    intercept = float(y.mean() - slope * x.mean())
    return slope, intercept, float((y - slope * x - intercept).std())


def _logistic(x: NDArray[np.float64], labels: NDArray[np.bool_]) -> tuple[float, float]:
    """Fit a logistic curve by maximum likelihood with Newton's method; return slope, intercept."""
    positives, negatives = int(labels.sum()), int((~labels).sum())
    targets = np.where(labels, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    centre, scale = x.mean(), max(float(x.std()), 1e-9)
    design = np.stack([(x - centre) / scale, np.ones_like(x)], axis=1)
    weights = np.array([0.0, math.log((positives + 1) / (negatives + 1))])
    loss = _log_loss(design @ weights, targets)
    for _ in range(_ROUNDS):
        fitted = _sigmoid(design @ weights)
        gradient = design.T @ (fitted - targets)
        curvature = (design * (fitted * (1 - fitted))[:, None]).T @ design
        step = np.linalg.solve(curvature + 1e-9 * np.eye(2), gradient)
        size = 1.0
        # A full step can overshoot if the classes hardly overlap: halve it until the loss falls.
        while (after := _log_loss(design @ (weights - size * step), targets)) > loss:
            size /= 2
            if size < 1e-6:
                break
        if size < 1e-6 or loss - after < 1e-12 * len(x):
            break
        weights, loss = weights - size * step, after
    slope = float(weights[0]) / scale
    return slope, float(weights[1] - slope * centre)


def _log_loss(linear: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
    return float((np.logaddexp(0, linear) - targets * linear).sum())


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-np.logaddexp(0, -x))
