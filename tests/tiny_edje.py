"""A small EDJE with random weights."""

from __future__ import annotations

import string

import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, SiglipConfig, SiglipModel

from edje_qdrant.encoders import SiglipEncoder
from edje_qdrant.encoders.siglip_pixels import SiglipPixels
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.config import AdapterKind

_SIDE = 32
_TEXT_LENGTH = 16


def _tokenizer() -> BertTokenizer:
    characters = string.ascii_lowercase + string.digits
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    pieces += [f"##{c}" for c in characters]
    return BertTokenizer({piece: number for number, piece in enumerate(pieces)})


def build_tiny_model(
    seed: int = 0, *, adapter: AdapterKind = "compressed", dropout: float = 0.1
) -> EDJEModel:
    """Build a model that knows nothing but tells images and texts apart."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    size = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    siglip = SiglipModel(
        SiglipConfig(
            text_config={
                **size, "hidden_size": 16, "vocab_size": len(tokenizer), "projection_size": 24,
                "max_position_embeddings": _TEXT_LENGTH,
                "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0,
            },
            vision_config={**size, "hidden_size": 24, "image_size": _SIDE, "patch_size": 8},
        )
    )  # fmt: skip
    language_model = BertForMaskedLM(
        BertConfig(
            **size, hidden_size=16, vocab_size=len(tokenizer), max_position_embeddings=64,
            initializer_range=0.5, hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    )  # fmt: skip
    processor = SiglipPixels(size={"height": _SIDE, "width": _SIDE})
    model = EDJEModel.build(
        SiglipEncoder(siglip, processor, tokenizer, name="tiny"),
        language_model,
        _tokenizer(),
        adapter=adapter,
        num_tokens=4,
        adapter_hidden_size=32,
        max_caption_tokens=40,
    )
    with torch.no_grad():
        for parameter in [*model.adapter.parameters(), *model.joint_encoder.pooler.parameters()]:
            parameter.normal_(std=0.5)
        model.joint_encoder.classifier.weight.normal_()
    return model
