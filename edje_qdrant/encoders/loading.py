"""Load an encoder by name, or from a model's folder."""

from __future__ import annotations

from pathlib import Path

from edje_qdrant.encoders.open_clip import OPEN_CLIP, OpenClipEncoder
from edje_qdrant.encoders.open_clip_models import SETTINGS_FILE
from edje_qdrant.encoders.siglip import SiglipEncoder
from edje_qdrant.errors import ConfigError

__all__ = ["encoder_from_folder", "pretrained_encoder"]


def pretrained_encoder(name: str) -> SiglipEncoder | OpenClipEncoder:
    """Load an encoder with its weights, to train an EDJE model on top of it.

    Args:
        name: Folder or hub id of a SigLIP; or, for open_clip, `open_clip:<model>@<weights>`,
            `open_clip:hf-hub:<id>` or `open_clip:local-dir:<folder>`.

    Raises:
        CheckpointError: There is no such encoder, or one of its files is unreadable.
        MissingExtraError: It needs open_clip, which is not installed.
        ConfigError: The name has nothing after `open_clip:`.
    """
    if not name.startswith(OPEN_CLIP):
        return SiglipEncoder.from_pretrained(name)
    model, _, weights = name.removeprefix(OPEN_CLIP).partition("@")
    if not model:
        raise ConfigError(f"{name!r} names no model; write {OPEN_CLIP}ViT-B-32@laion2b_s34b_b79k")
    return OpenClipEncoder.from_pretrained(model, weights or None)


def encoder_from_folder(
    folder: Path, *, name: str, separate_token_tower: bool = False
) -> SiglipEncoder | OpenClipEncoder:
    """Create the encoder of a saved model, without its weights; the caller loads them.

    Args:
        folder: The folder that `Encoder.save` wrote.
        name: The encoder's name in contracts.
        separate_token_tower: For SigLIP: whether vision tokens come from a second vision tower.

    Raises:
        CheckpointError: A file is missing or unreadable.
        MissingExtraError: It needs open_clip, which is not installed.
    """
    if (folder / SETTINGS_FILE).is_file():
        return OpenClipEncoder.from_config(folder, name=name)
    return SiglipEncoder.from_config(folder, name=name, separate_token_tower=separate_token_tower)
