"""Losses of a training step: matching, masked words, text recovery, distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own custom)
from torch import Tensor, nn

from edje_qdrant.errors import ConfigError
from edje_qdrant.model import EDJEModel
from edje_qdrant.training.distributed import gather, gather_padded, rank, total, world_size
from edje_qdrant.training.losses import distillation, image_text_matching, text_recovery, word_loss
from edje_qdrant.training.negatives import forbidden_pairs, mine_negatives

__all__ = ["Batch", "Objectives", "TrainedParts", "mask_words"]


@dataclass(frozen=True, slots=True)
class Objectives:
    """Weights of the objectives; an objective of weight 0 is not computed.

    Attributes:
        matching: Weight of image-text matching.
        words: Weight of masked words.
        recovery: Weight of text recovery.
        distillation: Weight of the teacher's scores as soft targets; 0 without a teacher.
        num_negatives: Number of wrong images, and of wrong captions, per pair.
        masked_share: Share of a caption's word pieces that is masked.
    """

    matching: float = 1.0
    words: float = 1.0
    recovery: float = 1.0
    distillation: float = 0.0
    num_negatives: int = 1
    masked_share: float = 0.5

    def __post_init__(self) -> None:
        weights = (self.matching, self.words, self.recovery, self.distillation)
        if min(weights) < 0 or not any(weights):
            raise ConfigError(f"weights must be 0 or more, and at least one above 0: {self}")
        if self.num_negatives < 1 or not 0 < self.masked_share <= 1:
            raise ConfigError(
                f"num_negatives must be 1 or more, masked_share above 0 and at most 1: {self}"
            )


@dataclass(frozen=True, slots=True)
class Batch:
    """One process's `b` pairs; negatives come from all processes' pairs.

    Attributes:
        vision_tokens: `(b, n, d_v)` from the frozen encoder.
        image_embeddings: `(b, d)` from the frozen encoder, unit length.
        text_embeddings: `(b, d)` from the frozen encoder, unit length.
        input_ids: `(b, t)` captions, `[CLS] ... [SEP]`, padded on the right.
        attention_mask: `(b, t)`.
        image_ids: `(b,)` int64; images with equal ids are not negatives of each other.
        caption_ids: `(b,)` int64; captions with equal ids are not negatives of each other.
        seed: Of the random numbers of this step; equal in all processes.
        matching: Whether this step computes matching and distillation.
        hard: Whether negatives are the first stage's most similar ones, or random.
        true_pairs: `(b, b)` bool, captions by images: pairs that match although image and caption
            come from different pairs, if the data can tell; for a single process only.
        contradictions: `(b * c, t)` ids of captions that are false of the same images, `c` for each
            pair in order: a third kind of negatives, if the data has them.
        contradictions_mask: `(b * c, t)`.
        contradicted: `(b, c)` bool, whether each of them is really false.
    """

    vision_tokens: Tensor
    image_embeddings: Tensor
    text_embeddings: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    image_ids: Tensor
    caption_ids: Tensor
    seed: int = 0
    matching: bool = True
    hard: bool = True
    true_pairs: Tensor | None = None
    contradictions: Tensor | None = None
    contradictions_mask: Tensor | None = None
    contradicted: Tensor | None = None

    def __len__(self) -> int:
        return len(self.vision_tokens)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """The pairs that a step scores: positives first, then each kind of negatives.

    Attributes:
        input_ids: `(p, t)`.
        attention_mask: `(p, t)`.
        images: `(p,)` rows of the global batch.
        allowed: By kind of negatives, `(b, k)` bool: which of them count.
    """

    input_ids: Tensor
    attention_mask: Tensor
    images: Tensor
    allowed: Sequence[Tensor] = field(default_factory=list)

    def split(self, logits: Tensor, size: int) -> tuple[Tensor, list[Tensor]]:
        """Split logits `(p,)` into positives `(b,)` and each kind of negatives `(b, k)`."""
        positive, *wrong = torch.split(logits, [size, *(a.numel() for a in self.allowed)])
        return positive, [w.view(size, -1) for w in wrong]


class TrainedParts(nn.Module):
    """The trained parts of a model, and the losses of a step.

    Losses are over the global batch: their mean over processes, and its gradient, are what one
    process with all pairs would compute.

    Args:
        model: Its adapter and joint encoder are trained; its encoder is not.
        objectives: Weights of the losses.
        teacher: A frozen model with the same encoder, whose scores are the soft targets.

    Raises:
        ConfigError: Only one of distillation and teacher is given, or the teacher has another
            encoder.
    """

    def __init__(
        self, model: EDJEModel, objectives: Objectives, *, teacher: EDJEModel | None = None
    ) -> None:
        super().__init__()
        if bool(objectives.distillation) != (teacher is not None):
            raise ConfigError("distillation needs a teacher, and a teacher needs a weight above 0")
        if teacher is not None and teacher.encoder.revision != model.encoder.revision:
            raise ConfigError(
                f"the teacher reads {teacher.encoder.name} ({teacher.encoder.revision[:12]}), the "
                f"student {model.encoder.name} ({model.encoder.revision[:12]}); both must read the "
                "same encoder's vision tokens"
            )
        self.adapter = model.adapter
        self.joint_encoder = model.joint_encoder
        self.objectives = objectives
        tokenizer = model.tokenizer
        self._mask, self._pad = tokenizer.mask_token_id, tokenizer.pad_token_id
        self._special = torch.tensor(tokenizer.all_special_ids)
        # In a list, so that the teacher is not a submodule, which would be trained and saved.
        self._teacher: Sequence[EDJEModel] = [] if teacher is None else [teacher]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted losses by name; figures that are only logged have a leading `_`.

        Source: paper, 3.3; EDJE facts, training.
        """
        weights = self.objectives
        tokens = self.adapter(batch.vision_tokens)  # (b, m, d_text)
        losses: dict[str, Tensor] = {}
        if weights.words:
            losses |= self._words(batch, tokens)
        if batch.matching and (weights.matching or weights.distillation):
            losses |= self._matching(batch, tokens)
        if weights.recovery:
            predicted = self.joint_encoder.caption_features(batch.input_ids, batch.attention_mask)
            losses["recovery"] = weights.recovery * text_recovery(
                predicted.float(), batch.text_embeddings
            )
        return losses

    def _words(self, batch: Batch, tokens: Tensor) -> dict[str, Tensor]:
        length = self.joint_encoder.max_caption_length
        noise = _noise(batch, (length,), 1)[:, : batch.input_ids.shape[1]]
        masked, where = mask_words(
            batch.input_ids,
            self._special.to(noise.device),
            self._mask,
            noise,
            self.objectives.masked_share,
        )
        logits = self.joint_encoder.mlm_logits(masked, batch.attention_mask, tokens, where)
        labels = batch.input_ids[where]
        count = total(len(labels), labels.device) / world_size()
        return {
            "words": self.objectives.words * word_loss(logits, labels, count),
            "_word_accuracy": (logits.argmax(-1) == labels).float().mean(),
        }

    def _matching(self, batch: Batch, tokens: Tensor) -> dict[str, Tensor]:
        """Score positives and negatives in one forward pass; return the losses of their logits."""
        pairs = self._pairs(batch)
        everyone = gather(tokens)  # (B, m, d_text)
        logits = self.joint_encoder(
            pairs.input_ids, pairs.attention_mask, everyone[pairs.images]
        ).float()  # (p,)
        positive, wrong = pairs.split(logits, len(batch))
        masked = [w.masked_fill(~a, -torch.inf) for w, a in zip(wrong, pairs.allowed, strict=True)]
        losses = {}
        if self.objectives.matching:
            loss = image_text_matching(positive, *masked)
            losses["matching"] = self.objectives.matching * loss
        if self._teacher:
            loss = distillation(logits, self._soft_targets(batch, pairs))
            losses["distillation"] = self.objectives.distillation * loss
        accuracy = (positive[:, None] > torch.cat(masked, dim=1)).float().mean()
        return {**losses, "_match_accuracy": accuracy}

    def _pairs(self, batch: Batch) -> _Pairs:
        count, size = self.objectives.num_negatives, len(batch)
        if batch.true_pairs is not None and world_size() > 1:
            raise ConfigError("true_pairs needs a single process; train with one, or leave it out")
        image_ids, caption_ids = gather(batch.image_ids), gather(batch.caption_ids)
        forbidden = forbidden_pairs(batch.image_ids, batch.caption_ids, image_ids, caption_ids)
        wrong_images = wrong_captions = ~forbidden
        if batch.true_pairs is not None:
            wrong_images = wrong_images & ~batch.true_pairs
            wrong_captions = wrong_captions & ~batch.true_pairs.T
        if batch.hard:
            by_caption = batch.text_embeddings @ gather(batch.image_embeddings).T  # (b, B)
            by_image = batch.image_embeddings @ gather(batch.text_embeddings).T
        else:
            by_caption, by_image = (_noise(batch, (len(image_ids),), n) for n in (2, 3))
        images = mine_negatives(by_caption, ~wrong_images, count=count)  # (b, k)
        captions = mine_negatives(by_image, ~wrong_captions, count=count)
        ids = gather_padded(batch.input_ids, self._pad)
        mask = gather_padded(batch.attention_mask, 0)
        own = torch.arange(size, device=ids.device) + rank() * size  # (b,)
        repeated = own.repeat_interleave(count)
        text = torch.cat([own, repeated, captions.flatten().clamp(min=0)])
        chosen = torch.cat([own, images.flatten().clamp(min=0), repeated])
        input_ids, attention_mask = ids[text], mask[text]
        allowed = [images >= 0, captions >= 0]
        if batch.contradictions is not None:
            assert batch.contradictions_mask is not None
            assert batch.contradicted is not None
            input_ids = _stack(input_ids, batch.contradictions, self._pad)
            attention_mask = _stack(attention_mask, batch.contradictions_mask, 0)
            chosen = torch.cat([chosen, own.repeat_interleave(batch.contradicted.shape[1])])
            allowed.append(batch.contradicted)
        return _Pairs(input_ids, attention_mask, chosen, allowed)

    @torch.no_grad()
    def _soft_targets(self, batch: Batch, pairs: _Pairs) -> Tensor:
        teacher = self._teacher[0]
        tokens = gather(teacher.adapter(batch.vision_tokens))
        logits = teacher.joint_encoder(pairs.input_ids, pairs.attention_mask, tokens[pairs.images])
        return torch.sigmoid(logits.float())


def mask_words(
    input_ids: Tensor, special_ids: Tensor, mask_token_id: int, noise: Tensor, share: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Mask a share of each caption's word pieces, at least one; never a special token.

    Args:
        input_ids: `(b, t)`.
        special_ids: `(s,)` ids of special tokens.
        mask_token_id: Replaces masked words.
        noise: `(b, t)` in [0, 1); the words with the lowest values are masked.
        share: Share of word pieces to mask.

    Returns:
        Ids with masks `(b, t)`, and the masked positions `(b, t)` bool.
    """
    word = ~torch.isin(input_ids, special_ids)
    order = noise.masked_fill(~word, 2.0)
    place = order.argsort(dim=1).argsort(dim=1)  # words first, in random order
    wanted = (word.sum(dim=1, keepdim=True) * share).round().clamp(min=1)
    where = (place < wanted) & word
    return input_ids.masked_fill(where, mask_token_id), where


def _stack(first: Tensor, second: Tensor, padding: int) -> Tensor:
    """Concatenate captions `(p, t)` and `(q, u)` to `(p + q, max(t, u))`."""
    width = max(first.shape[1], second.shape[1])
    return torch.cat([F.pad(x, (0, width - x.shape[1]), value=padding) for x in (first, second)])


def _noise(batch: Batch, shape: tuple[int, ...], stream: int) -> Tensor:
    """Return this process's rows of random numbers `(global batch, *shape)` in [0, 1)."""
    size, device = len(batch), batch.input_ids.device
    generator = torch.Generator().manual_seed(4 * batch.seed + stream)
    drawn = torch.rand((world_size() * size, *shape), generator=generator)
    return drawn[rank() * size : (rank() + 1) * size].to(device)
