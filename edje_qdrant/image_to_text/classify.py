"""Ranking of texts for an image, and zero-shot classification of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.checks import check_kind, check_list, check_number, check_strings, check_texts
from edje_qdrant.errors import ConfigError
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.queries import ImageQuery, encode_all, encode_query
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.text import clean_caption

__all__ = ["LabelScore", "TextMatch", "classify", "classify_batch", "match_texts"]

_PLACE = "{}"
# Maximum size of the tokens in one call of the joint encoder.
_TOKEN_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class TextMatch:
    """Hold how well one text fits an image.

    Attributes:
        index: Index of the text in the input, from 0.
        text: The text as passed in.
        score: Logit of the joint encoder; higher is better. None for texts that the first stage
            ranked behind the candidates.
        rank: Rank among all texts, from 1.
        retrieval_score: Cosine of the embeddings of image and text.
        retrieval_rank: Rank by that cosine, from 1.
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
        index: Index of the label in the input, from 0.
        label: The label as passed in.
        score: Logit of the joint encoder, averaged over the templates.
        probability: Softmax of `score` over the labels. It compares labels under the assumption
            that one of them is right; it is not calibrated, and sums to 1 even if all are wrong.
        rank: Rank among the labels, from 1.
        retrieval_score: Cosine of the embeddings of image and text, averaged over the templates.
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
        image: A path, a Pillow image, or an `ImageEncoding` of one image.
        texts: Texts to rank; they may repeat.
        top_k: Maximum number of matches; all by default.
        num_candidates: Number of texts of the first stage to score with the joint encoder; all by
            default. Other texts follow in the order of the first stage, without a score.
        reranker: Scores texts; by default `Reranker(model)`.

    Returns:
        Best first; equal scores in the order of the first stage, equal cosines in input order.

    Raises:
        ConfigError: A text contains no word, a number is below 1, or the image is invalid.
        ImageReadError: The image cannot be read.
        CheckpointError: A score is not a number.
    """
    check_kind("model", model, EDJEModel, "an EDJEModel")
    check_texts("texts", texts)
    for name, number in (("top_k", top_k), ("num_candidates", num_candidates)):
        check_number(name, number, optional=True)
    query = encode_query(model, image)
    # Equal texts are scored once, as their scores could differ in the last digits.
    distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    found = (query.embeddings @ encode_all(model, [*distinct]).T)[0]
    cosines = found[[distinct[text] for text in texts]]
    order = np.argsort(-cosines, kind="stable")
    chosen = [texts[row] for row in order[:num_candidates]]
    asked = [*dict.fromkeys(chosen)]
    tokens = np.broadcast_to(query.tokens, (len(asked), *query.tokens.shape[1:]))
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
    """Rank labels by how well they fit an image (zero-shot classification).

    Each label is inserted into each template and scored by the joint encoder. Labels are ranked by
    the mean of their logits; a softmax of these means is their probability.

    Args:
        model: Encodes and scores.
        image: A path, a Pillow image, or an `ImageEncoding` of one image.
        labels: Labels, which must differ after clean-up.
        template: A text with `{}` for the label, or several such texts.
        reranker: Scores labels; by default `Reranker(model)`.

    Returns:
        All labels, best first; equal ones in input order.

    Raises:
        ConfigError: There is no label or no template, one is invalid, or the image is invalid.
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
    """Classify several images; labels are encoded only once.

    Args:
        model: Encodes and scores.
        images: Any number of images, each as in `classify`.
        labels: As `classify`.
        template: As `classify`.
        reranker: As `classify`.

    Returns:
        One list of all labels for each image, in order.

    Raises:
        ConfigError: As `classify`; nothing was scored.
        ImageReadError: An image cannot be read; names it.
        CheckpointError: A score is not a number.
    """
    check_kind("model", model, EDJEModel, "an EDJEModel")
    check_list("images", images)
    texts, templates = _filled(labels, template)
    embeddings = encode_all(model, texts)
    reranker = reranker or Reranker(model)
    c = model.config
    step = max(1, _TOKEN_BYTES // (2 * c.num_tokens * c.token_dim * len(texts)))
    results: list[list[LabelScore]] = []
    for start in range(0, len(images), step):
        queries = [encode_query(model, image) for image in images[start : start + step]]
        tokens = np.stack([query.tokens for query in queries])  # (p, 1, m, d_text)
        # A view, not a copy, for a single image.
        spread = np.broadcast_to(tokens, (len(queries), len(texts), *tokens.shape[2:]))
        logits = reranker.score_pairs(
            texts * len(queries), spread.reshape(-1, c.num_tokens, c.token_dim)
        )
        for row, query in enumerate(queries):
            own = logits[row * len(texts) : (row + 1) * len(texts)]
            cosines = (query.embeddings @ embeddings.T)[0]
            results.append(_labels(labels, *(a.reshape(templates, -1) for a in (own, cosines))))
    return results


def _filled(labels: Sequence[str], template: str | Sequence[str]) -> tuple[list[str], int]:
    """Return each template with each label, template by template, and the number of templates."""
    check_texts("labels", labels)
    if not labels:
        raise ConfigError("there are no labels; give one or more")
    known: dict[str, str] = {}
    for label in labels:
        cleaned = clean_caption(label)
        if cleaned in known:
            raise ConfigError(
                f"the labels {known[cleaned]!r} and {label!r} are equal after clean-up, and "
                "would share their probability; leave one out"
            )
        known[cleaned] = label
    templates: Sequence[str] = [template] if isinstance(template, str) else template
    check_strings("template", templates)
    if not templates:
        raise ConfigError(f"there is no template; give one or more with {_PLACE!r} in it")
    for text in templates:
        if not isinstance(text, str) or _PLACE not in text:
            raise ConfigError(f"the template {text!r} has no {_PLACE!r} for the label")
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
