"""Tiny towers with random weights, and published-layout checkpoints made of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from reference import Sizes
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    SiglipConfig,
    SiglipModel,
)

from edje_qdrant.encoders.siglip_pixels import SiglipPixels

# fmt: off
WORDS = (
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "of", "red", "blue", "green",
    "circle", "square", "star", "left", "right", "above", "small", "large", "dog", "cat", "on",
    "##s", "##ish", "1", "2",
)
# fmt: on
CLS, SEP = WORDS.index("[CLS]"), WORDS.index("[SEP]")
NUM_TOKENS = 5
BERT_WIDTH = 36
VISION_WIDTH = 32


def tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})


def siglip_config(*, image_size: int = 32, patch_size: int = 8) -> SiglipConfig:
    shared = {"intermediate_size": 48, "num_hidden_layers": 2}
    return SiglipConfig(
        text_config={
            **shared, "hidden_size": 24, "num_attention_heads": 2, "vocab_size": len(WORDS),
            "max_position_embeddings": 12, "projection_size": VISION_WIDTH,
            "pad_token_id": 0, "bos_token_id": CLS, "eos_token_id": SEP,
        },
        vision_config={
            **shared, "hidden_size": VISION_WIDTH, "num_attention_heads": 4,
            "image_size": image_size, "patch_size": patch_size,
        },
    )  # fmt: skip


def bert_config(**changes: float) -> BertConfig:
    sizes = {
        "vocab_size": len(WORDS), "hidden_size": BERT_WIDTH, "num_hidden_layers": 2,
        "num_attention_heads": 6, "intermediate_size": 44,
    }  # fmt: skip
    return BertConfig(**{**sizes, **changes})


def write_siglip(folder: Path, config: SiglipConfig) -> None:
    """Write what a hub repository of SigLIP holds beside its weights."""
    config.save_pretrained(folder)
    size = config.vision_config.image_size
    SiglipPixels(size={"height": size, "width": size}).save(folder)
    tokenizer().save_pretrained(folder)


def write_language_model(folder: Path) -> None:
    """Write what the hub repository of the language model holds beside its weights."""
    bert_config().save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    settings = {"do_lower_case": True, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def randomise(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Return the module's state with values large enough for every detail to matter."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in module.state_dict().items():
        value = torch.randn(tensor.shape, generator=generator) * 0.2
        state[name] = value + 1 if "norm" in name.lower() and name.endswith("weight") else value
    return state


def dense(prefix: str, inputs: int, outputs: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {
        f"{prefix}.weight": torch.randn(outputs, inputs, generator=generator) * 0.2,
        f"{prefix}.bias": torch.randn(outputs, generator=generator) * 0.2,
    }


@dataclass(frozen=True)
class Published:
    """Hold a checkpoint's state and the folders of settings beside it."""

    state: dict[str, Tensor]
    siglip: Path
    language_model: Path
    folder: Path
    sizes: Sizes
    num_tokens: int

    def write(self, dtype: torch.dtype = torch.float32, **changes: object) -> Path:
        """Write the file as training writes it."""
        path = self.folder / "pytorch_model.pth"
        state = {name: tensor.to(dtype) for name, tensor in self.state.items()}
        content = {"model": state, "optimizer": {"state": {}}, "config": {"lr": 1e-4}, "epoch": 3}
        torch.save({**content, **changes}, path)
        return path

    def as_float32(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the state as it is after a trip through `dtype`."""
        return {name: tensor.to(dtype).float() for name, tensor in self.state.items()}


def publish(
    folder: Path,
    *,
    local: bool = False,
    deeper_vision_keys: bool = False,
    equal_towers: bool = True,
    positions: int = 512,
    image_size: int = 32,
    patch_size: int = 8,
) -> Published:
    """Make a checkpoint in the published layout, key by key as the facts list them."""
    config = siglip_config(image_size=image_size, patch_size=patch_size)
    write_siglip(folder / "siglip", config)
    write_language_model(folder / "language_model")
    clip = randomise(SiglipModel(config), seed=1)
    grown = bert_config(vocab_size=len(WORDS) + 1, max_position_embeddings=positions)
    language_model = randomise(BertForMaskedLM(grown), seed=2)
    words = language_model["bert.embeddings.word_embeddings.weight"]
    language_model["cls.predictions.decoder.weight"] = words
    language_model["cls.predictions.decoder.bias"] = language_model["cls.predictions.bias"]

    prefix = "vision_encoder.vision_model." if deeper_vision_keys else "vision_encoder."
    tower = SiglipModel(config).vision_model
    inner = "vision_model."
    vision = {k[len(inner) :]: v for k, v in clip.items() if k.startswith(inner)}
    if not equal_towers:
        vision = randomise(tower, seed=3)
    g = torch.Generator().manual_seed(4)
    width, hidden = VISION_WIDTH, 40
    state = {prefix + k: v.clone() for k, v in vision.items()}
    state |= {"clip." + k: v for k, v in clip.items()}
    state |= {"language_model." + k: v for k, v in language_model.items()}
    state["text_embeddings.weight"] = words
    p = "vision_projection."
    if local:
        state |= dense(p + "0", width, hidden, g) | dense(p + "2", hidden, BERT_WIDTH, g)
    else:
        state[p + "query"] = torch.randn(1, NUM_TOKENS, width, generator=g)
        state[p + "attention.in_proj_weight"] = torch.randn(3 * width, width, generator=g) * 0.2
        state[p + "attention.in_proj_bias"] = torch.randn(3 * width, generator=g) * 0.2
        state[p + "layernorm.weight"] = 1 + torch.randn(width, generator=g) * 0.2
        state[p + "layernorm.bias"] = torch.randn(width, generator=g) * 0.2
        for name in ("key", "value", "attention.out_proj"):
            state |= dense(p + name, width, width, g)
        state |= dense(p + "mlp.fc1", width, hidden, g) | dense(p + "mlp.fc2", hidden, width, g)
        state |= dense(p + "projection", width, BERT_WIDTH, g)
    state |= dense("classification_head.0.dense", BERT_WIDTH, BERT_WIDTH, g)
    state |= dense("classification_head.1", BERT_WIDTH, 1, g)
    state |= dense("text_projection", BERT_WIDTH, VISION_WIDTH, g)
    patches = (image_size // patch_size) ** 2
    return Published(
        state,
        folder / "siglip",
        folder / "language_model",
        folder,
        Sizes(4, 2, 6, patch_size, prefix),
        patches if local else NUM_TOKENS,
    )


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (40 + i, 56, 3), dtype=np.uint8)) for i in range(count)
    ]


# Captions of many lengths, the third one longer than what is read.
CAPTIONS = (
    "Red circle!",
    "a small GREEN star, left of the large blue square",
    "red blue " * 40 + "dogs",
    "the cat",
)
