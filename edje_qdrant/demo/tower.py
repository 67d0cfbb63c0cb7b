"""Training of the demo's first stage: a small SigLIP, from scratch on scenes.

A contrastive loss alone teaches so small a tower which colours are present, but not where objects
are. So during training, heads on the patches also predict what each patch shows and where it is.
The heads are dropped afterwards.
"""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own custom)
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertTokenizer, SiglipConfig, SiglipModel

from edje_qdrant.demo.captions import describe, truth_matrix, vocabulary
from edje_qdrant.demo.data import captions_for, patch_labels, render
from edje_qdrant.demo.scenes import COLOURS, SHAPES, SIZES
from edje_qdrant.metrics import ranks_of, recall_at
from edje_qdrant.training.loop import LoopConfig, fit
from edje_qdrant.training.losses import sigmoid_contrastive
from edje_qdrant.training.tower import ContrastiveTower, sincos_positions, tokenize

__all__ = [
    "GRID",
    "SIDE",
    "TEXT_LENGTH",
    "TowerTraining",
    "scene_tokenizer",
    "to_pixels",
    "train_tower",
]

SIDE = 96  # px, size of the tower's input; scenes are drawn at 256 px
PATCH = 12
GRID = SIDE // PATCH
TEXT_LENGTH = 32
_BATCH = 128


def scene_tokenizer() -> BertTokenizer:
    """Create a WordPiece tokenizer of the captions' words; other words split into letters."""
    letters = string.ascii_lowercase + string.digits
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *vocabulary()]
    pieces += [c for c in letters if c not in pieces] + [f"##{c}" for c in letters]
    return BertTokenizer({piece: number for number, piece in enumerate(pieces)})


def new_tower(vocabulary_size: int) -> SiglipModel:
    """Create the untrained SigLIP, with 2-D sinusoidal position embeddings of full scale."""
    width = 192
    text = {
        "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 512, "max_position_embeddings": TEXT_LENGTH,
        "vocab_size": vocabulary_size, "projection_size": width,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": width, "num_hidden_layers": 4, "num_attention_heads": 6,
        "intermediate_size": 768, "image_size": SIDE, "patch_size": PATCH, "hidden_act": "relu",
    }  # fmt: skip
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():
        model.logit_scale.fill_(np.log(10.0))
        model.logit_bias.fill_(-10.0)
        model.vision_model.embeddings.position_embedding.weight.copy_(sincos_positions(GRID, width))
    return model


def to_pixels(images: NDArray[np.uint8]) -> Tensor:
    """Convert bytes `(b, side, side, 3)` to pixels `(b, 3, side, side)` in [-1, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2) / 127.5 - 1


class TowerTraining(ContrastiveTower):
    """The tower and the heads that predict each patch's content and position in training."""

    def __init__(self, siglip: SiglipModel) -> None:
        super().__init__(siglip)
        width = siglip.vision_model.embeddings.embed_dim
        # Classes of the five predictions per patch: shape, colour, size, row, column.
        self.sizes = [len(SHAPES) + 1, len(COLOURS) + 1, len(SIZES) + 1, GRID, GRID]
        self.heads = nn.Linear(width, sum(self.sizes))
        row, column = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
        self.place: Tensor
        self.register_buffer("place", torch.stack([row, column], -1).reshape(1, -1, 2), False)

    def forward(  # type: ignore[override] # its batches have the patches' labels, too
        self, batch: tuple[Tensor, Tensor, Tensor, Tensor]
    ) -> dict[str, Tensor]:
        """Return the losses of a batch: pixels, input ids, patch labels, and true pairs.

        True pairs are `(b, b)` bool, captions by images.
        """
        pixels, input_ids, labels, also_true = batch
        vision = self.siglip.vision_model(pixels)
        image = F.normalize(vision.pooler_output.float(), dim=-1)
        text = self.embed_texts(input_ids)
        scale, bias = self.siglip.logit_scale, self.siglip.logit_bias
        dense, right = self.questions(self.heads(vision.last_hidden_state).float(), labels)
        return {
            "contrastive": sigmoid_contrastive(image, text, scale, bias, ignore=also_true),
            "dense": dense,
            "_shape": right[0],
            "_colour": right[1],
            "_size": right[2],
            "_column": right[4],
        }

    def questions(self, answers: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the summed cross-entropy of the predictions, and their accuracies on objects."""
        place = self.place.expand(len(labels), -1, -1)
        truth = torch.cat([labels, place], dim=-1)  # (b, patches, 5)
        shown = labels[..., 0] < len(SHAPES)
        # Three of four patches are background: give those with objects more weight.
        weight = torch.where(shown, 1.0, 0.15).flatten()
        weight = weight / weight.sum()
        losses, right = [], []
        for number, answer in enumerate(torch.split(answers, self.sizes, dim=-1)):
            entropy = F.cross_entropy(
                answer.flatten(0, 1), truth[..., number].flatten(), reduction="none"
            )
            losses.append((entropy * weight).sum())
            right.append((answer.argmax(-1) == truth[..., number])[shown].float().mean())
        shape, *others = losses
        return 2 * shape + torch.stack(others).sum(), right  # shape is learnt slowest


def train_tower(
    folder: Path,
    *,
    steps: int,
    num_scenes: int,
    seed: int,
    device: torch.device,
    progress: bool = True,
) -> tuple[SiglipModel, BertTokenizer, dict[str, float]]:
    """Train the small SigLIP on scenes; return the weights of the best validation.

    Args:
        folder: For drawn scenes, logs and checkpoints.
        steps: Optimiser steps of 128 images.
        num_scenes: Number of training scenes; each has a new caption in every batch.
        progress: Show bars on stderr.
        seed: Of weights, scenes and captions.
        device: To train on.
    """
    torch.manual_seed(seed)
    scenes, images = render("train", seed, num_scenes, SIDE, folder / "data", progress=progress)
    held, held_images = render("validation", seed, 1000, SIDE, folder / "data", progress=progress)
    held_captions = [c.text for c in captions_for(held, seed)]
    labels = torch.from_numpy(patch_labels(scenes, GRID))
    tokenizer = scene_tokenizer()
    training = TowerTraining(new_tower(len(tokenizer))).to(device)
    # On a CPU the backward pass of eager attention is much faster at this size.
    training.siglip.set_attn_implementation("eager" if device.type == "cpu" else "sdpa")

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rng = np.random.default_rng([seed, step, 1])
        chosen = np.sort(rng.choice(len(scenes), _BATCH, replace=False))
        shown = [scenes[i] for i in chosen]
        captions = [describe(s, rng) for s in shown]
        return (
            to_pixels(images[chosen]).to(device),
            tokenize(tokenizer, [c.text for c in captions], TEXT_LENGTH).to(device),
            labels[chosen].to(device),
            torch.from_numpy(truth_matrix(captions, shown)).to(device),
        )

    def validate() -> dict[str, float]:
        vision, text = [], []
        for start in range(0, len(held), 250):
            pixels = to_pixels(held_images[start : start + 250]).to(device)
            ids = tokenize(tokenizer, held_captions[start : start + 250], TEXT_LENGTH).to(device)
            vision.append(training.embed_images(pixels))
            text.append(training.embed_texts(ids))
        scores = (torch.cat(text) @ torch.cat(vision).T).cpu().numpy()
        ranks = ranks_of(scores, np.arange(len(held)))
        return {f"R@{k}": recall_at(ranks, k) for k in (1, 5, 10)}

    config = LoopConfig(
        steps=steps, peak_lr=1e-3, warmup_steps=min(300, steps // 5), validate_every=250, seed=seed
    )
    figures = fit(
        training,
        batch,
        config,
        folder=folder,
        name="tower",
        validate=validate,
        best_by="R@1",
        progress=progress,
    )
    return training.siglip, tokenizer, figures
