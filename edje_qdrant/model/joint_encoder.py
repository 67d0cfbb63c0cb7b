"""Joint encoder: a caption and an image's tokens in, one logit out."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from edje_qdrant.threads import TRANSFORMERS_LOCK

if TYPE_CHECKING:
    from transformers import BertConfig, BertForMaskedLM

__all__ = ["JointEncoder", "extend_positions", "new_language_model", "repeat_last_row"]


class JointEncoder(nn.Module):
    """Score whether a caption and an image match, from `[CLS] caption [SEP] tokens [SEP]`.

    Captions are given as `input_ids`, `[CLS] ... [SEP]` padded on the right, with their
    `attention_mask`. In the sequence the tokens follow each caption's own `[SEP]` directly, and
    the padding comes last.

    Args:
        language_model: BERT with its masked-language-model head.
        sep_token_id: Id of `[SEP]`.
        embedding_dim: Width of the stage-1 embeddings that `caption_features` learns to predict.
        max_caption_tokens: Word pieces read of a caption; longer captions are cut.

    Attributes:
        dtype_is_explicit: Whether the user chose the data type of the weights. Inference then
            computes in it unless told otherwise.

    Source: paper section 3, EDJE facts, the model, 3.
    """

    def __init__(
        self,
        language_model: BertForMaskedLM,
        *,
        sep_token_id: int,
        embedding_dim: int,
        max_caption_tokens: int = 61,
    ) -> None:
        super().__init__()
        width = language_model.config.hidden_size
        self.language_model = language_model
        self.pooler = nn.Linear(width, width)
        self.classifier = nn.Linear(width, 1)
        self.text_projection = nn.Linear(width, embedding_dim)
        self.sep_token_id = sep_token_id
        self.max_caption_length = max_caption_tokens + 2
        self.dtype_is_explicit = False

    @property
    def token_dim(self) -> int:
        """Return `d_text`."""
        return int(self.language_model.config.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor) -> Tensor:
        """Score pairs.

        Args:
            input_ids: `(B, t)` int64, captions without the tokens.
            attention_mask: `(B, t)`.
            tokens: `(B, m, d_text)`.

        Returns:
            `(B,)` logits; higher is better.
        """
        first = self.hidden_states(input_ids, attention_mask, tokens)[:, 0]  # (B, d_text)
        return cast("Tensor", self.classifier(torch.tanh(self.pooler(first)))[:, 0])

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        tokens: Tensor,
        *,
        layer: int | None = None,
    ) -> Tensor:
        """Return a layer's states, `(B, t + m + 1, d_text)`; caption positions come first.

        `t` is at most `max_caption_length`. States at padded positions are meaningless.

        Args:
            input_ids: `(B, t)` int64, captions without the tokens.
            attention_mask: `(B, t)`.
            tokens: `(B, m, d_text)`.
            layer: Number of layers, from 1; all of them by default.
        """
        input_ids, attention_mask = self._truncate(input_ids, attention_mask)
        t, m = input_ids.shape[1], tokens.shape[1]
        words = self.language_model.bert.embeddings.word_embeddings
        sep = input_ids.new_full((len(input_ids), 1), self.sep_token_id)
        captions = words(input_ids)  # (B, t, d)
        source = torch.cat(
            [captions, tokens.to(captions.dtype), words(sep)], dim=1
        )  # (B, t + m + 1, d)

        # Move each row's padding from between caption and tokens to the end. `behind` counts
        # positions from the end of the row's caption: 0 is the first token.
        place = torch.arange(t + m + 1, device=input_ids.device)
        behind = place - attention_mask.sum(dim=1, keepdim=True)  # (B, t + m + 1)
        index = torch.where(behind < 0, place, t + behind.clamp(max=m))  # (B, t + m + 1)
        pair = source.gather(1, index.unsqueeze(-1).expand(-1, -1, source.shape[-1]))
        output = self.language_model.bert(
            inputs_embeds=pair,
            token_type_ids=(behind >= 0).long(),
            attention_mask=(behind <= m).long(),
            output_hidden_states=layer is not None,
        )
        if layer is not None:
            return cast("Tensor", output.hidden_states[layer])
        return cast("Tensor", output.last_hidden_state)

    def mlm_logits(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        tokens: Tensor,
        where: Tensor | None = None,
    ) -> Tensor:
        """Predict a caption's masked words from the rest of the caption and the image's tokens.

        Args:
            input_ids: `(B, t)`, some of them masked.
            attention_mask: `(B, t)`.
            tokens: `(B, m, d_text)`.
            where: `(B, t)` bool, the positions to predict; all of them by default.

        Returns:
            `(B, t, vocabulary)`, or `(where.sum(), vocabulary)`; `t` is cut to
            `max_caption_length`.
        """
        hidden = self.hidden_states(input_ids, attention_mask, tokens)
        hidden = hidden[:, : min(input_ids.shape[1], self.max_caption_length)]
        if where is not None:
            hidden = hidden[where[:, : hidden.shape[1]]]
        return cast("Tensor", self.language_model.cls(hidden))

    def caption_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return `(B, d)`: captions alone, projected to the stage-1 space, not normalised."""
        input_ids, attention_mask = self._truncate(input_ids, attention_mask)
        output = self.language_model.bert(input_ids=input_ids, attention_mask=attention_mask)
        return cast("Tensor", self.text_projection(output.last_hidden_state[:, 0]))

    def _truncate(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Cut captions that are too long; their last position becomes `[SEP]`."""
        limit = self.max_caption_length
        if input_ids.shape[1] <= limit:
            return input_ids, attention_mask
        too_long = attention_mask[:, limit].bool()
        input_ids = input_ids[:, :limit].clone()
        input_ids[too_long, -1] = self.sep_token_id
        return input_ids, attention_mask[:, :limit]


def new_language_model(config: BertConfig) -> BertForMaskedLM:
    """Create BERT with its masked-language-model head and random weights."""
    with TRANSFORMERS_LOCK:
        from transformers import BertForMaskedLM

        return BertForMaskedLM(config)


def extend_positions(language_model: BertForMaskedLM, count: int) -> None:
    """Extend BERT to at least `count` positions in place, repeating its last position embedding."""
    embeddings = language_model.bert.embeddings
    weight = repeat_last_row(embeddings.position_embeddings.weight.detach(), count)
    if len(weight) == len(embeddings.position_embeddings.weight):
        return
    positions = nn.Embedding(count, weight.shape[1], _weight=weight)
    embeddings.position_embeddings = positions
    ids = torch.arange(count, device=weight.device).expand(1, -1)
    embeddings.register_buffer("position_ids", ids, persistent=False)
    embeddings.register_buffer("token_type_ids", torch.zeros_like(ids), persistent=False)
    language_model.config.max_position_embeddings = count


def repeat_last_row(table: Tensor, count: int) -> Tensor:
    """Return `(rows, width)` with at least `count` rows, the last one repeated."""
    return torch.cat([table, table[-1:].expand(max(count - len(table), 0), -1)])
