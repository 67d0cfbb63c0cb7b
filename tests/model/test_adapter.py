from __future__ import annotations

import pytest
import torch

from edje_qdrant.model import CompressedAdapter, EDJEConfig, LocalAdapter
from edje_qdrant.model.adapter import build_adapter


def build(kind: str) -> CompressedAdapter | LocalAdapter:
    config = EDJEConfig(
        encoder="tiny",
        adapter=kind,
        num_tokens=5,
        vision_hidden_size=32,
        token_dim=12,
        embedding_dim=32,
        adapter_hidden_size=40,
    )
    return build_adapter(config, num_heads=4, activation="gelu", layer_norm_eps=1e-6)


@pytest.mark.parametrize(("kind", "count"), [("compressed", 5), ("local", 16)])
def test_shapes_and_gradients(kind: str, count: int) -> None:
    adapter = build(kind)
    tokens = adapter(torch.randn(3, 16, 32))
    assert tokens.shape == (3, count, 12)
    tokens.square().sum().backward()
    assert [n for n, p in adapter.named_parameters() if p.grad is None] == []


def test_attention_weights_say_where_the_queries_look() -> None:
    adapter = build("compressed")
    assert isinstance(adapter, CompressedAdapter)
    vision_tokens = torch.randn(2, 16, 32)
    weights = adapter.attention_weights(vision_tokens)
    assert weights.shape == (2, 5, 16)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5))
    # A query that points at one patch's key finds that patch.
    with torch.no_grad():
        q, k, _ = adapter.attention.in_proj_weight.chunk(3)
        q.copy_(torch.eye(32))
        k.copy_(torch.eye(32))
        adapter.attention.in_proj_bias.zero_()
        adapter.query[0, 1] = adapter.key(vision_tokens)[0, 7] * 100
    assert int(adapter.attention_weights(vision_tokens)[0, 1].argmax()) == 7


def test_the_order_of_patches_does_not_matter_to_the_compressed_adapter() -> None:
    adapter = build("compressed")
    x = torch.randn(1, 16, 32)
    torch.testing.assert_close(adapter(x), adapter(x[:, torch.randperm(16)]))
