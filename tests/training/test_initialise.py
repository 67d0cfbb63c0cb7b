from __future__ import annotations

import pytest
import torch

from edje_qdrant.errors import ConfigError
from edje_qdrant.model.adapter import CompressedAdapter
from edje_qdrant.training.initialise import attention_entropy, look_at_regions


def adapter(count: int) -> CompressedAdapter:
    torch.manual_seed(0)
    return CompressedAdapter(
        num_tokens=count,
        vision_hidden_size=32,
        token_dim=16,
        hidden_size=24,
        num_heads=2,
        activation="gelu",
        layer_norm_eps=1e-6,
    )


def vision_tokens() -> torch.Tensor:
    """Make tokens that say where they are as position embeddings do, neighbours alike; in noise."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.arange(8)[:, None] * torch.pi / 8 * torch.arange(1, 9) / 2  # (8, 8)
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # (8, 16)
    rows, columns = line[:, None].expand(8, 8, -1), line[None].expand(8, 8, -1)
    place = torch.cat([rows, columns], dim=-1).reshape(64, 32)
    return place + 0.3 * torch.randn(20, 64, 32, generator=generator)


@pytest.mark.parametrize("count", [4, 8, 16, 64, 128])
def test_the_attention_becomes_as_narrow_as_asked_for(count):
    module, tokens = adapter(count), vision_tokens()
    assert attention_entropy(module, tokens) > 4.0
    look_at_regions(module, tokens, entropy=2.5)
    assert attention_entropy(module, tokens) == pytest.approx(2.5, abs=0.05)


def test_each_query_looks_at_its_own_region():
    module, tokens = adapter(16), vision_tokens()
    look_at_regions(module, tokens)
    with torch.no_grad():
        weights = module.attention_weights(tokens).mean(dim=0).reshape(16, 4, 2, 4, 2)
    by_region = weights.sum(dim=(2, 4)).reshape(16, 16)  # query, region
    assert by_region.argmax(dim=1).tolist() == list(range(16))


def test_patches_that_form_no_square_are_refused():
    with pytest.raises(ConfigError, match="do not form a square"):
        look_at_regions(adapter(16), torch.zeros(2, 60, 32))
