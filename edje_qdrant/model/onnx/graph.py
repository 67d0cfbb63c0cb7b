"""The joint encoder for export: plain operations, no data-dependent shapes."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from edje_qdrant.errors import ConfigError
from edje_qdrant.model.calibration import Calibration
from edje_qdrant.model.inference.packed_weights import is_supported
from edje_qdrant.model.joint_encoder import JointEncoder

__all__ = ["PortableJointEncoder"]

# Added to the attention scores of padding; softmax turns it into exactly 0.
_UNSEEN = -1e9


class PortableJointEncoder(nn.Module):
    """Score pairs as a `JointEncoder` does, with its weights.

    Padding stays between caption and tokens. It is masked in attention, and the tokens' positions
    continue at the caption's end. Only the `[CLS]` row of the last layer is computed.

    Args:
        joint_encoder: Source of the weights, all in one precision.
        calibration: If given, probabilities are returned too.

    Raises:
        ConfigError: The joint encoder is not plain BERT.
    """

    def __init__(self, joint_encoder: JointEncoder, calibration: Calibration | None) -> None:
        super().__init__()
        if not is_supported(joint_encoder):
            raise ConfigError(
                "the joint encoder is not plain BERT any more (did an adapter or a quantizer "
                "replace its layers?); merge it into the weights first"
            )
        self.bert: Any = joint_encoder.language_model.bert
        self.pooler = joint_encoder.pooler
        self.classifier = joint_encoder.classifier
        words = self.bert.embeddings.word_embeddings.weight
        self.register_buffer("sep", words[joint_encoder.sep_token_id].detach().clone())
        self._calibration = calibration

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor
    ) -> tuple[Tensor, ...]:
        """Score pairs.

        Args:
            input_ids: `(B, t)` int64, captions; `t` is at most `max_caption_length`.
            attention_mask: `(B, t)` int64.
            tokens: `(B, m, d_text)`.

        Returns:
            `(B,)` logits and, if calibrated, `(B,)` probabilities.
        """
        embeddings, layers = self.bert.embeddings, list(self.bert.encoder.layer)
        kinds = embeddings.token_type_embeddings.weight
        t, m = input_ids.shape[1], tokens.shape[1]
        caption = embeddings.word_embeddings(input_ids) + kinds[0]  # (B, t, d)
        caption = caption + embeddings.position_embeddings(torch.arange(t))
        places = attention_mask.sum(dim=1, keepdim=True) + torch.arange(m + 1)  # (B, m + 1)
        # len() would make the batch size a constant of the graph.
        sep = cast("Tensor", self.sep).expand(tokens.shape[0], 1, -1)
        image = torch.cat([tokens, sep], dim=1) + kinds[1]  # (B, m + 1, d)
        image = image + embeddings.position_embeddings(places)
        x = embeddings.LayerNorm(torch.cat([caption, image], dim=1))  # (B, t + m + 1, d)
        seen = torch.cat([attention_mask, torch.ones_like(places)], dim=1)
        unseen = torch.where(seen.bool(), 0.0, _UNSEEN)[:, None, None]  # (B, 1, 1, t + m + 1)
        for layer in layers[:-1]:
            x = self._layer(layer, x, x, unseen)
        first = self._layer(layers[-1], x[:, :1], x, unseen)[:, 0]  # (B, d)
        logits = self.classifier(torch.tanh(self.pooler(first)))[:, 0]
        if self._calibration is None:
            return (logits,)
        linear = self._calibration.slope * logits + self._calibration.intercept
        return logits, torch.sigmoid(linear)

    def _layer(self, layer: Any, rows: Tensor, x: Tensor, unseen: Tensor) -> Tensor:
        """Compute one layer for `rows`, with attention over all of `x`."""
        attention, heads = layer.attention, int(self.bert.config.num_attention_heads)

        def split(y: Tensor) -> Tensor:
            y = y.reshape(y.shape[0], y.shape[1], heads, -1)
            return y.transpose(1, 2)  # (B, heads, places, d / heads)

        query = split(attention.self.query(rows))
        key, value = split(attention.self.key(x)), split(attention.self.value(x))
        weights = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + unseen
        mixed = (weights.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
        rows = attention.output.LayerNorm(attention.output.dense(mixed) + rows)
        wide = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(rows))
        return cast("Tensor", layer.output.LayerNorm(layer.output.dense(wide) + rows))
