"""The pre-training step: matching, masked words and text recovery over one batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edje_qdrant.model.joint_encoder import JointEncoder
from edje_qdrant.training.losses import image_text_matching, masked_words, text_recovery
from edje_qdrant.training.negatives import mine_negatives

__all__ = ["Batch", "ObjectiveWeights", "mask_words", "pretraining_losses"]


@dataclass(frozen=True, slots=True)
class ObjectiveWeights:
    """Weigh the objectives; one of weight 0 is not computed."""

    matching: float = 1.0
    words: float = 1.0
    recovery: float = 1.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Hold `b` pairs.

    Attributes:
        vision_tokens: `(b, n, d_v)`, the frozen encoder's.
        input_ids: `(b, t)` captions, `[CLS] ... [SEP]`, padded on the right.
        attention_mask: `(b, t)`.
        text_embeddings: `(b, d)` unit length, the frozen encoder's.
        similarity: `(b, b)` captions by pictures, the first stage's.
        forbidden: `(b, b)` bool, pairs that are no negatives.
        contradictions: `(b * c, t)` ids of captions that say something false of the same
            pictures, `c` for each pair in turn: a third kind of negatives, where data can give it.
        contradictions_mask: `(b * c, t)`.
        contradicted: `(b, c)` bool, whether they are false indeed.
    """

    vision_tokens: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    text_embeddings: Tensor
    similarity: Tensor
    forbidden: Tensor
    contradictions: Tensor | None = None
    contradictions_mask: Tensor | None = None
    contradicted: Tensor | None = None


def pretraining_losses(
    adapter: nn.Module,
    joint_encoder: JointEncoder,
    batch: Batch,
    weights: ObjectiveWeights,
    *,
    mask_token_id: int,
    special_ids: Tensor,
    num_negatives: int = 1,
    hard_negatives: bool = True,
    masked_share: float = 0.5,
) -> dict[str, Tensor]:
    """Return the weighted losses by name, and with a leading `_` figures that are only logged.

    Source: paper, 3.3; EDJE facts, training.
    """
    tokens = adapter(batch.vision_tokens)  # (b, m, d_text)
    losses: dict[str, Tensor] = {}
    if weights.words:
        masked, where = mask_words(batch.input_ids, special_ids, mask_token_id, masked_share)
        logits = joint_encoder.mlm_logits(masked, batch.attention_mask, tokens, where)
        labels = batch.input_ids[where]
        losses["words"] = weights.words * masked_words(logits, labels)
        losses["_word_accuracy"] = (logits.argmax(-1) == labels).float().mean()
    if weights.matching:
        losses |= _matching(joint_encoder, batch, tokens, weights, num_negatives, hard_negatives)
    if weights.recovery:
        predicted = joint_encoder.caption_features(batch.input_ids, batch.attention_mask)
        losses["recovery"] = weights.recovery * text_recovery(
            predicted.float(), batch.text_embeddings
        )
    return losses


def _matching(
    joint_encoder: JointEncoder,
    batch: Batch,
    tokens: Tensor,
    weights: ObjectiveWeights,
    num_negatives: int,
    hard: bool,
) -> Mapping[str, Tensor]:
    """Score pairs, pairs with wrong pictures and pairs with wrong captions in one go."""
    images, captions = mine_negatives(
        batch.similarity, batch.forbidden, count=num_negatives, hard=hard
    )
    size = len(tokens)
    own = torch.arange(size, device=tokens.device)
    repeated = own.repeat_interleave(num_negatives)
    text = torch.cat([own, repeated, captions.flatten().clamp(min=0)])
    picture = torch.cat([own, images.flatten().clamp(min=0), repeated])
    ids, mask = batch.input_ids[text], batch.attention_mask[text]
    allowed = [images >= 0, captions >= 0]
    if batch.contradictions is not None:
        assert batch.contradictions_mask is not None
        assert batch.contradicted is not None
        ids = torch.cat([ids, batch.contradictions])
        mask = torch.cat([mask, batch.contradictions_mask])
        picture = torch.cat([picture, own.repeat_interleave(batch.contradicted.shape[1])])
        allowed.append(batch.contradicted)
    logits = joint_encoder(ids, mask, tokens[picture]).float()
    positive, *wrong = torch.split(logits, [size, *(a.numel() for a in allowed)])
    wrong = [
        w.view(size, -1).masked_fill(~a, -torch.inf) for w, a in zip(wrong, allowed, strict=True)
    ]
    loss = image_text_matching(positive, *wrong)
    accuracy = (positive[:, None] > torch.cat(wrong, dim=1)).float().mean()
    return {"matching": weights.matching * loss, "_match_accuracy": accuracy}


def mask_words(
    input_ids: Tensor, special_ids: Tensor, mask_token_id: int, share: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Mask a share of the word pieces, at least one a caption; never a special token.

    Args:
        input_ids: `(b, t)`.
        special_ids: `(s,)` ids that stand for no word.
        mask_token_id: What masked words are replaced by.
        share: Of a caption's word pieces.

    Returns:
        The masked ids `(b, t)`, and where they were masked `(b, t)` bool.
    """
    word = ~torch.isin(input_ids, special_ids)
    order = torch.rand(input_ids.shape, device=input_ids.device).masked_fill(~word, 2.0)
    place = order.argsort(dim=1).argsort(dim=1)  # words first, in random order
    wanted = (word.sum(dim=1, keepdim=True) * share).round().clamp(min=1)
    where = (place < wanted) & word
    return input_ids.masked_fill(where, mask_token_id), where
