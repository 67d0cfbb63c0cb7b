"""The losses of the paper (arXiv 2510.06820) and SigLIP's."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own custom)
from torch import Tensor

__all__ = [
    "distillation",
    "image_text_matching",
    "sigmoid_contrastive",
    "text_recovery",
    "word_loss",
]


def sigmoid_contrastive(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    ignore: Tensor | None = None,
) -> Tensor:
    """Classify each pair of a batch as matching or not (SigLIP's loss).

    Args:
        image_embeddings: `(b, d)`, unit length; row i belongs to row i of the texts.
        text_embeddings: `(b, d)`, unit length.
        scale: Scalar, the logarithm of the inverse temperature.
        bias: Scalar, added to every logit.
        ignore: `(b, b)` bool, texts by images: pairs off the diagonal that match as well.

    Returns:
        Scalar, summed over images, averaged over texts. Source: SigLIP, arXiv 2303.15343, 3.1.
    """
    logits = text_embeddings @ image_embeddings.T * scale.exp() + bias  # (b, b)
    own = torch.eye(len(logits), device=logits.device, dtype=torch.bool)
    losses = -F.logsigmoid(torch.where(own, logits, -logits))
    if ignore is not None:
        losses = losses.masked_fill(ignore & ~own, 0.0)
    return losses.sum(dim=1).mean()


def image_text_matching(positive: Tensor, *negatives: Tensor) -> Tensor:
    """Classify which of a pair and its negatives is the pair, for each kind of negatives.

    Args:
        positive: `(b,)` logits of the true pairs.
        negatives: `(b, k)` logits, one tensor per kind (images, captions); `-inf` where a pair
            has no such negative.

    Returns:
        Scalar cross-entropy with the positive at index 0, averaged over kinds. Source: paper, 3.3.
    """
    target = torch.zeros(len(positive), dtype=torch.long, device=positive.device)
    kinds = [F.cross_entropy(torch.cat([positive[:, None], n], dim=1), target) for n in negatives]
    return torch.stack(kinds).mean()


def word_loss(logits: Tensor, labels: Tensor, count: float | None = None) -> Tensor:
    """Compute the cross-entropy of masked word pieces.

    Args:
        logits: `(n, vocabulary)`, at the masked positions of a batch.
        labels: `(n,)` ids of the masked words.
        count: Divisor of the sum if `n` is only a part of all positions; `n` by default.

    Returns:
        Scalar cross-entropy. Source: paper, 3.3.
    """
    return F.cross_entropy(logits.float(), labels, reduction="sum") / (count or len(labels))


def distillation(logits: Tensor, targets: Tensor) -> Tensor:
    """Match a teacher's scores.

    Args:
        logits: `(n,)` of pairs and of their negatives.
        targets: `(n,)` the teacher's scores in [0, 1], sigmoid of its logits.

    Returns:
        Scalar binary cross-entropy. Source: paper, 3.4; EDJE facts, training.
    """
    return F.binary_cross_entropy_with_logits(logits, targets)


def text_recovery(predicted: Tensor, text_embeddings: Tensor) -> Tensor:
    """Predict the first stage's text embedding from the caption alone.

    Args:
        predicted: `(b, d)`, the projected `[CLS]` state.
        text_embeddings: `(b, d)` of the first stage, without gradient.

    Returns:
        Scalar, one minus the mean cosine. Source: paper, 3.3.
    """
    return 1 - F.cosine_similarity(predicted, text_embeddings, dim=1).mean()
