"""Judge texts against images: rank sentences for one, or tell which of some labels it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.checks import check_number, check_texts
from edje_qdrant.errors import ConfigError
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.queries import ImageQuery, encode_all, encode_query
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.text import clean_caption

__all__ = ["LabelScore", "TextMatch", "classify", "classify_batch", "match_texts"]

_PLACE = "{}"
# Bound on the tokens that are handed to the joint encoder in one call.
_TOKEN_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class TextMatch:
    """Hold how well one text fits an image.

    Attributes:
        index: Place of the text among those given, from 0.
        text: As given.
        score: The joint encoder's logit; higher is better. None where the first stage ranked the
            text behind the candidates.
        rank: Place among all, from 1.
        retrieval_score: Cosine of the image's and the text's embedding.
        retrieval_rank: Place by that cosine, from 1.
    """

    index: int
    text: str
    score: float | None
    rank: int
    retrieval_score: float
    retrieval_rank: int


@dataclass(frozen=True, slots=True)
class LabelScore:
    """Hold how well one label fits an image.

    Attributes:
        index: Place of the label among those given, from 0.
        label: As given.
        score: The joint encoder's logit, averaged over the templates.
        probability: Softmax of `score` over the labels given. It says how the labels compare, as
            if one of them had to be right; it is not calibrated, and labels that are all wrong
            share out 1 as well.
        rank: Place among the labels, from 1.
        retrieval_score: Cosine of the image's and the text's embedding, averaged likewise.
    """

    index: int
    label: str
    score: float
    probability: float
    rank: int
    retrieval_score: float


def match_texts(
    model: EDJEModel,
    image: ImageQuery,
    texts: Sequence[str],
    *,
    top_k: int | None = None,
    num_candidates: int | None = None,
    reranker: Reranker | None = None,
) -> list[TextMatch]:
    """Rank texts by how well they fit an image.

    Args:
        model: Encodes and scores.
        image: A path, an image that Pillow opened, or an `ImageEncoding` of one image.
        texts: What to rank; the same text may come more than once.
        top_k: Matches to return; all by default.
        num_candidates: Texts of the first stage to score with the joint encoder; all by default.
            The others come behind those, in the first stage's order, without a score.
        reranker: Scores; one of the model's with default settings where none is given.

    Returns:
        Best first, equal scores in the first stage's order, equal cosines as given.

    Raises:
        ConfigError: A text has no word in it, a number is below 1, or the image is none.
        ImageReadError: The image cannot be read.
        CheckpointError: A score is not a number.
    """
    check_texts("texts", texts)
    for name, number in (("top_k", top_k), ("num_candidates", num_candidates)):
        check_number(name, number, optional=True)
    picture = encode_query(model, image)
    # Each text once: the same one's scores could differ in their last digits.
    distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    found = (picture.embeddings @ encode_all(model, [*distinct]).T)[0]
    cosines = found[[distinct[text] for text in texts]]
    order = np.argsort(-cosines, kind="stable")
    chosen = [texts[row] for row in order[:num_candidates]]
    asked = [*dict.fromkeys(chosen)]
    tokens = np.broadcast_to(picture.tokens, (len(asked), *picture.tokens.shape[1:]))
    logits = (reranker or Reranker(model)).score_pairs(asked, tokens)
    logit_of = dict(zip(asked, logits, strict=True))
    scores = np.array([logit_of[text] for text in chosen], np.float32)
    best = np.argsort(-scores, kind="stable").tolist()
    ranked: list[tuple[int, float | None]] = [(place, float(scores[place])) for place in best]
    ranked += [(place, None) for place in range(len(chosen), len(order))]
    return [
        TextMatch(
            index=int(order[place]),
            text=texts[order[place]],
            score=score,
            rank=rank,
            retrieval_score=float(cosines[order[place]]),
            retrieval_rank=place + 1,
        )
        for rank, (place, score) in enumerate(ranked[:top_k], start=1)
    ]


def classify(
    model: EDJEModel,
    image: ImageQuery,
    labels: Sequence[str],
    *,
    template: str | Sequence[str] = "a photo of {}",
    reranker: Reranker | None = None,
) -> list[LabelScore]:
    """Tell which of some labels fits an image best, without training for them.

    Each label is put into each template and scored by the joint encoder; the mean of a label's
    logits ranks it, and a softmax of these means over the labels is its probability.

    Args:
        model: Encodes and scores.
        image: A path, an image that Pillow opened, or an `ImageEncoding` of one image.
        labels: Two labels that read the same once cleaned up are refused.
        template: A text with `{}` where the label goes, or several.
        reranker: Scores; one of the model's with default settings where none is given.

    Returns:
        Every label, best first, equal ones as given.

    Raises:
        ConfigError: There is no label or no template, one cannot be used, or the image is none.
        ImageReadError: The image cannot be read.
        CheckpointError: A score is not a number.
    """
    return classify_batch(model, [image], labels, template=template, reranker=reranker)[0]


def classify_batch(
    model: EDJEModel,
    images: Sequence[ImageQuery],
    labels: Sequence[str],
    *,
    template: str | Sequence[str] = "a photo of {}",
    reranker: Reranker | None = None,
) -> list[list[LabelScore]]:
    """Do as `classify` for several images; the labels' texts are encoded once for them all.

    Args:
        model: Encodes and scores.
        images: Any number of images, each as `classify` takes it.
        labels: As `classify`.
        template: As `classify`.
        reranker: As `classify`.

    Returns:
        One list of all labels an image, in order.

    Raises:
        ConfigError: As `classify`; nothing was scored.
        ImageReadError: An image cannot be read; names it.
        CheckpointError: A score is not a number.
    """
    if isinstance(images, str):
        raise ConfigError("classify_batch takes a list of images; for one use classify")
    texts, templates = _filled(labels, template)
    embeddings = encode_all(model, texts)
    judge = reranker or Reranker(model)
    c = model.config
    step = max(1, _TOKEN_BYTES // (2 * c.num_tokens * c.token_dim * len(texts)))
    results: list[list[LabelScore]] = []
    for start in range(0, len(images), step):
        pictures = [encode_query(model, image) for image in images[start : start + step]]
        tokens = np.stack([picture.tokens for picture in pictures])  # (p, 1, m, d)
        # Not copied where it is a single image, however many labels there are.
        spread = np.broadcast_to(tokens, (len(pictures), len(texts), *tokens.shape[2:]))
        logits = judge.score_pairs(
            texts * len(pictures), spread.reshape(-1, c.num_tokens, c.token_dim)
        )
        for row, picture in enumerate(pictures):
            own = logits[row * len(texts) : (row + 1) * len(texts)]
            cosines = (picture.embeddings @ embeddings.T)[0]
            results.append(_labels(labels, *(a.reshape(templates, -1) for a in (own, cosines))))
    return results


def _filled(labels: Sequence[str], template: str | Sequence[str]) -> tuple[list[str], int]:
    """Return each template with each label in it, template by template, and how many those are."""
    check_texts("labels", labels)
    if not labels:
        raise ConfigError("there are no labels; give one or more")
    known: dict[str, str] = {}
    for label in labels:
        cleaned = clean_caption(label)
        if cleaned in known:
            raise ConfigError(
                f"the labels {known[cleaned]!r} and {label!r} read the same, and would share their "
                "probability; leave one out"
            )
        known[cleaned] = label
    templates = [template] if isinstance(template, str) else list(template)
    if not templates:
        raise ConfigError(f"there is no template; give one or more with {_PLACE!r} in it")
    for text in templates:
        if not isinstance(text, str) or _PLACE not in text:
            raise ConfigError(f"the template {text!r} has no {_PLACE!r} where the label goes")
    return [text.replace(_PLACE, label) for text in templates for label in labels], len(templates)


def _labels(
    labels: Sequence[str], logits: NDArray[np.float32], cosines: NDArray[np.float32]
) -> list[LabelScore]:
    """Rank labels by `(templates, labels)` logits."""
    means = logits.mean(axis=0, dtype=np.float64)
    weights = np.exp(means - means.max())
    shares = weights / weights.sum()
    nearness = cosines.mean(axis=0, dtype=np.float64)
    return [
        LabelScore(
            index=row,
            label=labels[row],
            score=float(means[row]),
            probability=float(shares[row]),
            rank=rank,
            retrieval_score=float(nearness[row]),
        )
        for rank, row in enumerate(np.argsort(-means, kind="stable").tolist(), start=1)
    ]
