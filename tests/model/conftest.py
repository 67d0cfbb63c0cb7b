from __future__ import annotations

import pytest
from tiny import Published, bert_config, publish, siglip_config, tokenizer
from transformers import BertForMaskedLM, SiglipModel

from edje_qdrant.encoders import SiglipEncoder
from edje_qdrant.encoders.siglip_pixels import SiglipPixels
from edje_qdrant.model import EDJEModel


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish(tmp_path_factory.mktemp("published"))


@pytest.fixture
def model() -> EDJEModel:
    """Build a fresh, untrained model."""
    processor = SiglipPixels(size={"height": 32, "width": 32})
    encoder = SiglipEncoder(SiglipModel(siglip_config()), processor, tokenizer(), name="tiny")
    return EDJEModel.build(
        encoder,
        BertForMaskedLM(bert_config()),
        tokenizer(),
        num_tokens=5,
        adapter_hidden_size=40,
    )
