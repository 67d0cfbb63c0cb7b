"""Build the model of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from edje_qdrant.encoders import Encoder, pretrained_encoder
from edje_qdrant.encoders.hub import HubModel, HubOptions, find_model
from edje_qdrant.errors import CheckpointError, ConfigError
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.checkpoints.folder import is_model_folder
from edje_qdrant.threads import TRANSFORMERS_LOCK
from edje_qdrant.training.recipe import ModelSection

if TYPE_CHECKING:
    from transformers import BertForMaskedLM

__all__ = ["attention_for_training", "build_model", "freeze", "take_joint_encoder"]


def build_model(
    section: ModelSection,
    *,
    encoder: Encoder | None = None,
    language_model: tuple[BertForMaskedLM, Any] | None = None,
) -> EDJEModel:
    """Load the model to continue with, or build a new one; in float32, on the CPU.

    Args:
        section: The recipe's section `model`.
        encoder: Replaces the encoder that `section.encoder` names.
        language_model: Replaces the one that `section.language_model` names, with its tokenizer.

    Raises:
        CheckpointError: A named model cannot be loaded.
        MissingExtraError: The encoder needs open_clip, which is not installed.
        ConfigError: The model of `joint_encoder_from` has other sizes.
    """
    if section.start_from is not None:
        model = EDJEModel.from_pretrained(section.start_from, device="cpu", dtype=torch.float32)
        model.calibration = None  # training changes the logits it was fitted to
        return model
    if encoder is None:
        if section.encoder is None:
            raise ConfigError("no encoder: name model.encoder in the recipe")
        encoder = _encoder(section.encoder)
    bert, tokenizer = language_model or _language_model(section.language_model)
    model = EDJEModel.build(
        encoder,
        bert,
        tokenizer,
        adapter=section.adapter,
        num_tokens=section.num_tokens,
        adapter_hidden_size=section.adapter_hidden_size,
    )
    if section.joint_encoder_from is not None:
        other = EDJEModel.from_pretrained(
            section.joint_encoder_from, device="cpu", dtype=torch.float32
        )
        take_joint_encoder(model, other)
    return model


def take_joint_encoder(model: EDJEModel, other: EDJEModel) -> None:
    """Copy another model's joint encoder into this model, for example a trained local one's.

    Positions beyond this model's are dropped; a local model has more.

    Raises:
        ConfigError: The two differ in sizes or vocabulary.
    """
    own, theirs = model.joint_encoder.state_dict(), other.joint_encoder.state_dict()
    positions = "language_model.bert.embeddings.position_embeddings.weight"
    theirs[positions] = theirs[positions][: len(own[positions])]
    unlike = [
        f"{name} ({tuple(theirs[name].shape) if name in theirs else 'missing'}, not "
        f"{tuple(weights.shape)})"
        for name, weights in own.items()
        if name not in theirs or theirs[name].shape != weights.shape
    ]
    if unlike:
        raise ConfigError(
            f"the joint encoder of {other.name_or_path} does not fit: {unlike[0]}; build both on "
            "the same language model"
        )
    model.joint_encoder.load_state_dict(theirs)


def freeze(model: EDJEModel, *, language_model: bool) -> None:
    """Freeze the encoder and, on request, the language model; adapter and heads stay trainable."""
    for parameter in model.encoder.parameters():  # type: ignore[attr-defined]
        parameter.requires_grad_(False)
    if language_model:
        for parameter in model.joint_encoder.language_model.parameters():
            parameter.requires_grad_(False)


@contextmanager
def attention_for_training(model: EDJEModel) -> Iterator[None]:
    """Use eager attention on a CPU during training: its backward pass is much faster there."""
    language_model = model.joint_encoder.language_model
    if model.device.type == "cpu":
        language_model.set_attn_implementation("eager")
    try:
        yield
    finally:
        language_model.set_attn_implementation("sdpa")


def _encoder(name_or_path: str) -> Encoder:
    # The weights of an EDJE model's encoder are in the model's own file, not in `encoder/`.
    if is_model_folder(name_or_path):
        return EDJEModel.from_pretrained(name_or_path, device="cpu", dtype=torch.float32).encoder
    return pretrained_encoder(name_or_path)


def _language_model(name_or_path: str) -> tuple[BertForMaskedLM, object]:
    with TRANSFORMERS_LOCK:
        from transformers import AutoTokenizer, BertForMaskedLM

    instead = "name the folder or hub id of a BERT"
    found = find_model(name_or_path, HubOptions(), what="language model", instead=instead)
    source = found.repo_id if isinstance(found, HubModel) else str(found)
    extra = found.arguments() if isinstance(found, HubModel) else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **extra)
        return BertForMaskedLM.from_pretrained(source, **extra), tokenizer
    except Exception as error:  # transformers raises whatever its parsers raise
        if isinstance(found, HubModel) and found.unreachable is not None:
            raise found.refused(error, what="language model", instead=instead) from error
        raise CheckpointError(
            f"cannot load the language model {name_or_path} ({error}); {instead}",
            path=name_or_path,
        ) from error
