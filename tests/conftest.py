"""What tests of several modules share: a small model with random weights, and pictures."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from edje_qdrant.encoders import SiglipEncoder
from edje_qdrant.model import EDJEModel

WritePictures = Callable[..., list[Path]]

_SIDE = 32
_TEXT_LENGTH = 16


def _tokenizer() -> BertTokenizer:
    characters = string.ascii_lowercase + string.digits
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    pieces += [f"##{c}" for c in characters]
    return BertTokenizer({piece: number for number, piece in enumerate(pieces)})


def build_tiny_model(seed: int = 0) -> EDJEModel:
    """Build a model that knows nothing but tells pictures and texts apart."""
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
            initializer_range=0.5,
        )
    )  # fmt: skip
    processor = SiglipImageProcessorPil(
        size={"height": _SIDE, "width": _SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    model = EDJEModel.build(
        SiglipEncoder(siglip, processor, tokenizer, name="tiny"),
        language_model,
        _tokenizer(),
        num_tokens=4,
        adapter_hidden_size=32,
        max_caption_tokens=40,
    )
    with torch.no_grad():
        for parameter in [*model.adapter.parameters(), *model.joint_encoder.pooler.parameters()]:
            parameter.normal_(std=0.5)
        model.joint_encoder.classifier.weight.normal_()
    return model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `EDJEModel.from_pretrained` takes."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> EDJEModel:
    return EDJEModel.from_pretrained(tiny_folder, device="cpu")


@pytest.fixture(scope="session")
def other_model() -> EDJEModel:
    """A model of the same sizes with other weights."""
    return build_tiny_model(seed=1).place("cpu", None)


@pytest.fixture(scope="session")
def write_pictures() -> WritePictures:
    """Write `n` different pictures into a folder and return their paths, sorted."""

    def write(folder: Path, n: int, *, seed: int = 0, suffix: str = ".png") -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        paths = []
        for number in range(n):
            blocks = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
            path = folder / f"picture-{number:04d}{suffix}"
            Image.fromarray(blocks).resize((50, 40), Image.Resampling.BILINEAR).save(path)
            paths.append(path)
        return paths

    return write
