from __future__ import annotations

import pytest
import torch
from transformers import BertTokenizer, SiglipConfig, SiglipModel

from edje_qdrant.encoders import SiglipEncoder
from edje_qdrant.encoders.siglip_pixels import SiglipPixels

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "circle"]


@pytest.fixture
def siglip() -> SiglipEncoder:
    """Build a tiny SigLIP: 32 px, 8 px patches, 32 wide, 12 places for text."""
    torch.manual_seed(0)
    shared = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = SiglipConfig(
        text_config={
            **shared, "hidden_size": 24, "vocab_size": len(WORDS), "projection_size": 32,
            "max_position_embeddings": 12, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
        },
        vision_config={**shared, "hidden_size": 32, "image_size": 32, "patch_size": 8},
    )  # fmt: skip
    processor = SiglipPixels(size={"height": 32, "width": 32})
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    return SiglipEncoder(SiglipModel(config).eval(), processor, tokenizer, name="tiny")
