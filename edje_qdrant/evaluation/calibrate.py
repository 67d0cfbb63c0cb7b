"""Calibration of a model's logits on annotated images, with cross-validated quality figures."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.data.annotations import Annotation, group_by_image
from edje_qdrant.errors import ConfigError
from edje_qdrant.evaluation.ask_in_memory import read_out, text_to_image
from edje_qdrant.evaluation.gallery import build_gallery
from edje_qdrant.evaluation.rankings import Rankings
from edje_qdrant.evaluation.run import ingest_gallery
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.calibration import (
    MATCH_WORDS,
    Calibration,
    MatchWord,
    adaptive_stops,
    fit_calibration,
)
from edje_qdrant.model.inference.precision import Precision
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.search.options import NUM_CANDIDATES

__all__ = [
    "Accepts",
    "CalibrationReport",
    "WordShare",
    "accepts",
    "calibrate",
    "savings",
    "with_matches",
    "word_shares",
]

# With fewer candidates, the fit would not cover the scores of candidates at low ranks.
_FEWEST = 10

# Share of the captions that are shorter than the texts that the calibration covers.
_SHORT = 0.01


@dataclass(frozen=True, slots=True)
class Accepts:
    """Hold how well the score of the best hit separates queries with and without a right image.

    A query with its right image in the pool is truly accepted if that image is the best hit and
    reaches the cutoff. A query without a right image is falsely accepted if any image reaches it.

    Attributes:
        true: Share of queries with a right image that are truly accepted, at the cutoff.
        false: Share of queries without one that are falsely accepted, at the cutoff.
        true_at: False share (0.01, 0.05, 0.1) -> largest true share at any cutoff with at most
            this false share.
    """

    true: float | None
    false: float | None
    true_at: dict[str, float]


@dataclass(frozen=True, slots=True)
class WordShare:
    """Hold how many pairs of a text and an image got a word for their match, and are right.

    Attributes:
        pairs: Number of pairs.
        right: Share of them that are right; None without pairs.
    """

    pairs: int
    right: float | None


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """Hold a calibration and its quality on queries it was not fitted to.

    Attributes:
        calibration: The calibration, fitted to all queries.
        joint: Accepts by the joint encoder's score, by cross-validation in two halves.
        cosine: Accepts by the first stage's score, of the same queries.
        brier: Mean squared error of the probabilities, by cross-validation.
        pairs_saved: Share of pairs not scored with early stopping for one hit, by
            cross-validation.
        winners_lost: Share of queries whose best image early stopping misses, by
            cross-validation.
        words: What the words for matches are worth, by cross-validation. As in the fit, every
            second query counts without its right images.
    """

    calibration: Calibration
    joint: Accepts
    cosine: Accepts
    brier: float
    pairs_saved: float
    winners_lost: float
    words: dict[MatchWord, WordShare]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return asdict(self)

    def text(self) -> str:
        """Return the report as text."""
        found = self.calibration
        shares = "  ".join(f"{100 * float(share):>5.0f}%" for share in self.joint.true_at)
        lines = [
            f"fitted to {found.pairs} pairs of {found.queries} queries; measured in two halves, "
            "each on the other",
            f'cutoff of min_score="auto": logit {found.cutoff:.2f}; right answers accepted '
            f"{self.joint.true or 0:.1%}, queries without one accepted {self.joint.false or 0:.1%}",
            f"for texts of {found.least_words} words or more; shorter ones have no probability",
            f"mean squared error of probabilities: {self.brier:.4f}",
            "",
            "right, of the pairs that are called a",
            *(
                f"  {word + ' match':<16}{_range(word):<22}{_share(self.words[word])}"
                for word in MATCH_WORDS
            ),
            "",
            f"right answers accepted at false accepts of  {shares}",
            *(
                f"  {name:<40}  " + "  ".join(f"{v:>6.1%}" for v in one.true_at.values())
                for name, one in (("joint encoder", self.joint), ("first stage", self.cosine))
            ),
            "",
            f"adaptive=True, one hit: {self.pairs_saved:.1%} of pairs saved, "
            f"{self.winners_lost:.1%} of winners lost",
        ]
        return "\n".join(lines)


def calibrate(
    model: EDJEModel,
    annotations: Sequence[Annotation],
    *,
    data: str,
    matches: Mapping[str, Collection[str]] | None = None,
    num_candidates: int = NUM_CANDIDATES,
    limit: int | None = 2000,
    cutoff_probability: float = 0.5,
    winners_lost: float = 0.002,
    precision: Precision = "auto",
    progress: bool = False,
) -> CalibrationReport:
    """Rank annotated images for their captions and fit a calibration to the scores.

    Args:
        model: The model; it is not changed.
        annotations: Images and captions similar to those that will be searched, and not part of
            the training data, for which a model's scores are too high.
        data: Names the data in the calibration.
        matches: Caption -> paths of all images it describes, if known; by default a caption
            describes only its own image.
        num_candidates: Candidates for each caption.
        limit: Use only this number of images, the first ones; None for all.
        cutoff_probability: Probability at the cutoff of `min_score="auto"`.
        winners_lost: Share of queries whose best image `adaptive=True` may miss.
        precision: Precision of the joint encoder; see `Reranker`.
        progress: Show bars on stderr.

    Raises:
        ConfigError: There are too few images, a caption cannot be used, or an argument is out of
            range.
    """
    if num_candidates < _FEWEST:
        raise ConfigError(f"num_candidates is {num_candidates}; calibrate on {_FEWEST} or more")
    chosen = group_by_image(annotations)[:limit]
    gallery = build_gallery(chosen)
    with (
        tempfile.TemporaryDirectory() as folder,
        ImageCollection.create(Path(folder) / "index", "images", model.contract()) as collection,
    ):
        failed = ingest_gallery(gallery, collection, model, progress=progress)
        gallery = gallery.without(failed)
        images = read_out(gallery, collection)
    reranker = Reranker(model, precision=precision)
    rankings = text_to_image(
        gallery, model, images, num_candidates, reranker=reranker, progress=progress
    )
    if matches is not None:
        rankings = with_matches(rankings, matches)

    def fit(rows: NDArray[np.int64]) -> Calibration:
        return fit_calibration(
            rankings.first[rows],
            rankings.joint[rows],
            rankings.right[rows],
            data=data,
            cutoff_probability=cutoff_probability,
            winners_lost=winners_lost,
        )

    everything = np.arange(len(rankings))
    words = [len(text.split()) for text in rankings.queries]
    whole = replace(fit(everything), least_words=int(np.quantile(words, _SHORT)))
    # Captions of one image are in the same half, so that the halves have no image in common.
    halves = [everything[rankings.clusters % 2 == half] for half in (0, 1)]
    return _report(whole, rankings, [(fit(halves[1 - h]), halves[h]) for h in (0, 1)])


def with_matches(rankings: Rankings, matches: Mapping[str, Collection[str]]) -> Rankings:
    """Return the rankings with every image counted as right that a caption describes.

    Args:
        rankings: Text-to-image rankings.
        matches: Caption -> paths.
    """
    right = rankings.right.copy()
    for row, caption in enumerate(rankings.queries):
        true = matches.get(caption, ())
        right[row] |= [rankings.answers[one] in true for one in rankings.candidates[row]]
    return replace(rankings, right=right)


def accepts(
    rankings: Rankings, scores: NDArray[np.float32], accepted: NDArray[np.bool_] | None = None
) -> Accepts:
    """Return how well a score separates queries with a right image from those without.

    Each query is used twice: with all its candidates, and with only its wrong ones.

    Args:
        rankings: The queries.
        scores: `(q, depth)` scores of either stage.
        accepted: `(q, depth)` bool: whether a candidate reaches the cutoff; None for no cutoff.
    """
    rows = np.arange(len(rankings))
    best = scores.argmax(axis=1)
    won = rankings.right[rows, best]
    with_right = np.where(won, scores[rows, best], -np.inf)
    others = np.where(rankings.right, -np.inf, scores)
    without = others.max(axis=1)
    true = false = None
    if accepted is not None:
        true = float((won & accepted[rows, best]).mean())
        false = float(accepted[rows, others.argmax(axis=1)].mean())
    at = {}
    for share in (0.01, 0.05, 0.1):
        cutoff = np.quantile(without, 1 - share, method="higher")
        at[str(share)] = float((with_right > cutoff).mean())
    return Accepts(true, false, at)


def savings(
    calibration: Calibration, rankings: Rankings, *, top_k: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return `(q,)` numbers of pairs scored with `adaptive=True`, and the best one's index."""
    stops = adaptive_stops(calibration, rankings.first, rankings.joint, top_k=top_k)
    places = np.arange(rankings.depth)
    seen = np.where(places < stops[:, None], rankings.joint, -np.inf)
    return stops, seen.argmax(axis=1)


def word_shares(
    probabilities: NDArray[np.float64], rankings: Rankings
) -> dict[MatchWord, WordShare]:
    """Return how many pairs of each word for a match there are, and which share is right.

    Args:
        probabilities: `(q, depth)` probabilities of a match.
        rankings: The queries; every second one counts without its right images.
    """
    absent = np.arange(len(rankings)) % 2 == 1
    kept = ~(absent[:, None] & rankings.right)
    shares: dict[MatchWord, WordShare] = {}
    most = np.inf
    for word, least in MATCH_WORDS.items():
        right = rankings.right[kept & (probabilities >= least) & (probabilities < most)]
        shares[word] = WordShare(right.size, float(right.mean()) if right.size else None)
        most = least
    return shares


def _range(word: MatchWord) -> str:
    """Return the probabilities of a word as text."""
    words = [*MATCH_WORDS]
    place = words.index(word)
    least = f"{MATCH_WORDS[word]:.0%}"
    if place == 0:
        return f"({least} or more)"
    most = f"{MATCH_WORDS[words[place - 1]]:.0%}"
    return f"(below {most})" if place == len(words) - 1 else f"({least} to {most})"


def _share(found: WordShare) -> str:
    return "no pair" if found.right is None else f"{found.right:>6.1%} of {found.pairs}"


def _report(
    whole: Calibration,
    rankings: Rankings,
    halves: Sequence[tuple[Calibration, NDArray[np.int64]]],
) -> CalibrationReport:
    accepted = np.zeros(rankings.joint.shape, np.bool_)
    probabilities = np.zeros(rankings.joint.shape)
    stops = np.zeros(len(rankings), np.int64)
    found = np.zeros(len(rankings), np.int64)
    for calibration, rows in halves:
        logits = rankings.joint[rows]
        accepted[rows] = logits >= calibration.cutoff
        probabilities[rows] = calibration.probability(logits)
        all_stops, all_found = savings(calibration, rankings)
        stops[rows], found[rows] = all_stops[rows], all_found[rows]
    return CalibrationReport(
        calibration=whole,
        joint=accepts(rankings, rankings.joint, accepted),
        cosine=accepts(rankings, rankings.first),
        brier=float(((probabilities - rankings.right) ** 2).mean()),
        pairs_saved=float(1 - stops.mean() / rankings.depth),
        winners_lost=float((found != rankings.joint.argmax(axis=1)).mean()),
        words=word_shares(probabilities, rankings),
    )
