"""Adapters: vision tokens of an image in, tokens of the joint encoder's width out."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from edje_qdrant.encoders.weights import HashedModule
from edje_qdrant.model.config import EDJEConfig
from edje_qdrant.threads import TRANSFORMERS_LOCK

__all__ = ["CompressedAdapter", "LocalAdapter", "build_adapter"]


def _activation(name: str) -> nn.Module:
    """Create the activation that transformers calls `name`."""
    with TRANSFORMERS_LOCK:
        from transformers.activations import ACT2FN

    return cast("nn.Module", ACT2FN[name])


class _MLP(nn.Module):
    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.activation = _activation(activation)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.fc2(self.activation(self.fc1(x))))


class CompressedAdapter(HashedModule):
    """Compress an image's vision tokens into a few tokens with learnable queries.

    Args:
        num_tokens: `m`, the number of queries.
        vision_hidden_size: `d_v`.
        token_dim: `d_text`.
        hidden_size: Width of the MLP.
        num_heads: Attention heads, as in the vision tower.
        activation: Name of the MLP's activation, as in the language model.
        layer_norm_eps: Epsilon of the layer norm, as in the vision tower.

    Source: paper section 3, EDJE facts, the model, 2.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        vision_hidden_size: int,
        token_dim: int,
        hidden_size: int,
        num_heads: int,
        activation: str,
        layer_norm_eps: float,
    ) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, num_tokens, vision_hidden_size) * 0.02)
        self.key = nn.Linear(vision_hidden_size, vision_hidden_size)
        self.value = nn.Linear(vision_hidden_size, vision_hidden_size)
        self.attention = nn.MultiheadAttention(vision_hidden_size, num_heads, batch_first=True)
        self.layernorm = nn.LayerNorm(vision_hidden_size, eps=layer_norm_eps)
        self.mlp = _MLP(vision_hidden_size, hidden_size, activation)
        self.projection = nn.Linear(vision_hidden_size, token_dim)

    def forward(self, vision_tokens: Tensor) -> Tensor:
        """Turn vision tokens `(B, n, d_v)` into tokens `(B, m, d_text)`."""
        return self._attend(vision_tokens, need_weights=False)[0]

    def attention_weights(self, vision_tokens: Tensor) -> Tensor:
        """Return the queries' attention `(B, m, n)`, averaged over heads; rows sum to one."""
        return cast("Tensor", self._attend(vision_tokens, need_weights=True)[1])

    def _attend(self, vision_tokens: Tensor, *, need_weights: bool) -> tuple[Tensor, Any]:
        query = self.query.expand(len(vision_tokens), -1, -1)  # (B, m, d_v)
        x, weights = self.attention(
            query, self.key(vision_tokens), self.value(vision_tokens), need_weights=need_weights
        )  # (B, m, d_v), (B, m, n)
        x = x + self.mlp(self.layernorm(x))  # (B, m, d_v)
        return self.projection(x), weights  # (B, m, d_text)


class LocalAdapter(HashedModule):
    """Turn each vision token into one token.

    Args:
        vision_hidden_size: `d_v`.
        token_dim: `d_text`.
        hidden_size: Width of the MLP.
        activation: Name of the MLP's activation, as in the language model.

    Source: paper section 3, EDJE facts, the model, 2.
    """

    def __init__(
        self, *, vision_hidden_size: int, token_dim: int, hidden_size: int, activation: str
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_hidden_size, hidden_size)
        self.activation = _activation(activation)
        self.fc2 = nn.Linear(hidden_size, token_dim)

    def forward(self, vision_tokens: Tensor) -> Tensor:
        """Turn vision tokens `(B, n, d_v)` into tokens `(B, n, d_text)`."""
        return cast("Tensor", self.fc2(self.activation(self.fc1(vision_tokens))))


def build_adapter(
    config: EDJEConfig, *, num_heads: int, activation: str, layer_norm_eps: float
) -> CompressedAdapter | LocalAdapter:
    """Create the adapter of a configuration with random weights."""
    if config.adapter == "local":
        return LocalAdapter(
            vision_hidden_size=config.vision_hidden_size,
            token_dim=config.token_dim,
            hidden_size=config.adapter_hidden_size,
            activation=activation,
        )
    return CompressedAdapter(
        num_tokens=config.num_tokens,
        vision_hidden_size=config.vision_hidden_size,
        token_dim=config.token_dim,
        hidden_size=config.adapter_hidden_size,
        num_heads=num_heads,
        activation=activation,
        layer_norm_eps=layer_norm_eps,
    )
