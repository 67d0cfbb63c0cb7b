"""Training of the demo's second stage: adapter and joint encoder on frozen vision tokens.

As in the paper: masked words, text recovery, and matching against negatives that are similar to the
first stage. In addition, captions that contradict their own image in one fact: few negatives of a
batch differ only in a size or a relation, which would not be learnt without contradictions. And the
places of the objects that a caption mentions: see `edje_qdrant.demo.places`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from edje_qdrant.demo.captions import (
    Caption,
    contradict,
    describe,
    describe_briefly,
    mentioned_places,
    truth_matrix,
)
from edje_qdrant.demo.data import captions_for, render
from edje_qdrant.demo.places import PLACES_GRID, SceneBatch, SceneParts
from edje_qdrant.demo.scenes import Scene, Split
from edje_qdrant.demo.tower import SIDE, scene_tokenizer, to_pixels
from edje_qdrant.encoders import SiglipEncoder
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.adapter import CompressedAdapter
from edje_qdrant.model.config import AdapterKind
from edje_qdrant.training.build import attention_for_training
from edje_qdrant.training.initialise import look_at_regions
from edje_qdrant.training.loop import LoopConfig, fit
from edje_qdrant.training.objectives import Objectives
from edje_qdrant.training.validation import search_validation
from edje_qdrant.training.vision_cache import VisionCache, encode_source, open_cache

__all__ = ["JointSettings", "new_model", "train_joint"]

_NEIGHBOURS = 4  # images per group of similar images in a batch
_POOL = 4096
_VALIDATION_QUERIES, _VALIDATION_CANDIDATES = 500, 10


_OBJECTIVES = Objectives(masked_share=0.3)


@dataclass(frozen=True, slots=True)
class JointSettings:
    """Settings of the bundled model; an ablation changes one of them.

    Attributes:
        adapter: `compressed`, or `local` with one token per patch.
        num_tokens: Tokens per image of the compressed adapter.
        width: Of the joint encoder, and of a token.
        layers: Of the joint encoder.
        heads: Of each layer.
        objectives: Weights; few words are masked, because a masked word must follow from the rest.
        places: Weight of the objective that predicts where the mentioned objects lie.
        brief_texts: Share of texts without a relation: phrases and single words.
        words_alone: Share of the steps before matching begins.
        random_pairs: Share of the steps with random negatives. Hard negatives follow, in batches of
            similar images.
        contradictions: Contradictions per pair, in steps with hard negatives.
        batch: Images per step, a multiple of 4.
    """

    adapter: AdapterKind = "compressed"
    num_tokens: int = 16
    width: int = 128
    layers: int = 6
    heads: int = 4
    objectives: Objectives = _OBJECTIVES
    places: float = 0.0
    brief_texts: float = 0.0
    words_alone: float = 0.15
    random_pairs: float = 0.2
    contradictions: int = 2
    batch: int = 64


def new_model(encoder: SiglipEncoder, settings: JointSettings | None = None) -> EDJEModel:
    """Create an untrained EDJE model with a small BERT on top of a trained encoder."""
    settings = settings or JointSettings()
    tokenizer = scene_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=settings.width, num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads, intermediate_size=4 * settings.width,
        max_position_embeddings=96, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return EDJEModel.build(
        encoder,
        BertForMaskedLM(config),
        tokenizer,
        adapter=settings.adapter,
        num_tokens=settings.num_tokens,
        adapter_hidden_size=768,
    )


def train_joint(
    encoder: SiglipEncoder, folder: Path, *, steps: int, num_scenes: int, seed: int,
    device: torch.device, settings: JointSettings | None = None, teacher: EDJEModel | None = None,
    start: EDJEModel | None = None, name: str = "joint", progress: bool = True,
) -> tuple[EDJEModel, dict[str, float]]:  # fmt: skip
    """Train adapter and joint encoder on a frozen encoder.

    Args:
        encoder: Trained; it is not changed.
        folder: For drawn scenes, vision tokens, logs and checkpoints.
        steps: Optimiser steps.
        num_scenes: Number of training scenes.
        seed: Of weights, captions and batches.
        device: To train on.
        settings: The bundled model's by default.
        teacher: Source of soft targets, if the objectives include distillation.
        start: Trained model to continue with, of this encoder; it is changed. By default a new one.
        name: Of this training, for its files in the folder.
        progress: Show bars on stderr.

    Returns:
        The model with the weights of the best validation, and its figures.
    """
    settings = settings or JointSettings()
    torch.manual_seed(seed)
    encoder.to(device).eval()
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    scenes, cache = _encoded("train", encoder, folder, num_scenes, seed, device, progress)
    held, held_cache = _encoded("validation", encoder, folder, 1000, seed, device, progress)
    model = (start or new_model(encoder, settings)).to(device)
    if start is None and isinstance(model.adapter, CompressedAdapter):
        sample = torch.from_numpy(np.array(cache.tokens[:256])).float().to(device)
        look_at_regions(model.adapter, sample)

    size = settings.batch

    def batch(step: int) -> SceneBatch:
        matching = step >= settings.words_alone * steps
        hard = step >= settings.random_pairs * steps
        rng = np.random.default_rng([seed, step, 2])
        chosen = (
            _alike(cache.embeddings, size, rng) if hard else rng.choice(len(scenes), size, False)
        )
        shown = [scenes[i] for i in chosen]
        brief = rng.random(size) < settings.brief_texts if settings.brief_texts else [False] * size
        captions = [
            describe_briefly(s, rng) if short else describe(s, rng)
            for s, short in zip(shown, brief, strict=True)
        ]
        texts = [c.text for c in captions]
        count = settings.contradictions if hard else 0
        false = [contradict(c, rng) for c in captions for _ in range(count)]
        ids, mask = model.tokenize([c.text for c in [*captions, *false]])
        numbers = torch.arange(size, device=device)
        return SceneBatch(
            vision_tokens=torch.from_numpy(cache.tokens[chosen]).to(device).float(),
            image_embeddings=torch.from_numpy(cache.embeddings[chosen]).to(device),
            # Copied via numpy: autograd does not accept tensors created in inference mode.
            text_embeddings=torch.from_numpy(model.encode_texts(texts)).to(device),
            input_ids=ids[:size],
            attention_mask=mask[:size],
            image_ids=numbers,
            caption_ids=numbers,
            seed=int(rng.integers(1 << 40)),
            matching=matching,
            hard=hard,
            true_pairs=torch.from_numpy(truth_matrix(captions, shown)).to(device),
            places=torch.from_numpy(mentioned_places(captions, shown, PLACES_GRID)).to(device),
            **_contradictions(false, shown, ids, mask),
        )

    queries = [c.text for c in captions_for(held, seed)][:_VALIDATION_QUERIES]

    def vision_tokens() -> Iterator[Tensor]:
        states = torch.from_numpy(np.array(held_cache.tokens)).to(device)
        return (part.float() for part in torch.split(states, 250))

    validate = search_validation(
        model,
        queries,
        np.arange(len(queries)),
        held_cache.embeddings,
        vision_tokens,
        num_candidates=_VALIDATION_CANDIDATES,
    )
    config = LoopConfig(
        steps=steps, peak_lr=1e-3, warmup_steps=min(150, steps // 5), validate_every=250, seed=seed
    )
    parts = SceneParts(model, settings.objectives, weight=settings.places, teacher=teacher)
    with attention_for_training(model):
        figures = fit(
            parts.to(device), batch, config,
            folder=folder, name=name, validate=validate, best_by="R@1", progress=progress,
        )  # fmt: skip
    return model, figures


def _contradictions(
    false: list[Caption], scenes: list[Scene], input_ids: Tensor, attention_mask: Tensor
) -> dict[str, Tensor]:
    """Return a batch's contradictions, whose ids follow its captions', and which are false."""
    if not false:
        return {}
    own = np.arange(len(false)) * len(scenes) // len(false)
    true = torch.from_numpy(truth_matrix(false, scenes)[np.arange(len(false)), own])
    return {
        "contradictions": input_ids[len(scenes) :],
        "contradictions_mask": attention_mask[len(scenes) :],
        "contradicted": ~true.view(len(scenes), -1).to(input_ids.device),
    }


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Describe one split's scenes to the vision cache."""

    name: str
    fingerprint: str
    count: int

    def __len__(self) -> int:
        return self.count


def _encoded(
    split: Split,
    encoder: SiglipEncoder,
    folder: Path,
    count: int,
    seed: int,
    device: torch.device,
    progress: bool,
) -> tuple[list[Scene], VisionCache]:
    """Draw and encode one split's scenes."""
    scenes, images = render(split, seed, count, SIDE, folder / "data", progress=progress)
    drawn = _Drawn(f"{split} scenes", f"{split}-{seed}-{count}", count)
    encode_source(
        encoder,
        drawn,
        folder / "vision",
        lambda row: to_pixels(images[row : row + 1]),
        device=device,
        batch_size=250,
        workers=1,
        progress=progress,
    )
    cache = open_cache(encoder, drawn, folder / "vision")
    assert cache is not None  # it was just encoded
    return scenes, cache


def _alike(
    embeddings: NDArray[np.float32], size: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw a batch of groups of images that are similar to the first stage.

    In a random batch even the hardest negative is easy, while a search reranks the nearest images
    of a whole collection.
    """
    pool = rng.choice(len(embeddings), min(_POOL, len(embeddings)), replace=False)
    unit = embeddings[pool]
    centres = unit[: size // _NEIGHBOURS]
    near = np.argpartition(-(centres @ unit.T), _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]
    chosen = list(dict.fromkeys(near.ravel().tolist()))  # each once
    rest = [i for i in range(len(pool)) if i not in set(chosen)][: size - len(chosen)]
    return pool[chosen + rest]
