"""Load an encoder by name, or from a model's folder."""

from __future__ import annotations

from pathlib import Path

from edje_qdrant.encoders.open_clip import OPEN_CLIP, OpenClipEncoder
from edje_qdrant.encoders.open_clip_models import SETTINGS_FILE
from edje_qdrant.encoders.siglip import SiglipEncoder
from edje_qdrant.errors import ConfigError

__all__ = ["encoder_from_folder", "pretrained_encoder"]


def pretrained_encoder(
    name: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> SiglipEncoder | OpenClipEncoder:
    """Load an encoder with its weights, to train an EDJE model on top of it.

    Args:
        name: Folder or hub id of a SigLIP; or, for open_clip, `open_clip:<model>@<weights>`,
            `open_clip:hf-hub:<id>` or `open_clip:local-dir:<folder>`.
        revision: Branch, tag or commit on the hub; not for open_clip.
        cache_dir: Folder for downloads; by default that of huggingface_hub.
        token: Access token of the hub; by default the stored one. Not for open_clip.
        local_files_only: Make no request: use only what was downloaded before. Not for open_clip.

    Raises:
        CheckpointError: There is no such encoder, or one of its files is unreadable.
        MissingExtraError: It needs open_clip, which is not installed.
        ConfigError: The name has nothing after `open_clip:`, or an option is invalid.
    """
    if not name.startswith(OPEN_CLIP):
        return SiglipEncoder.from_pretrained(
            name,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
    if revision is not None or token is not None or local_files_only:
        raise ConfigError(
            f"revision, token and local_files_only are not for {name!r}, which open_clip loads; "
            "leave them out, or download a folder and name it: open_clip:local-dir:<folder>"
        )
    model, _, weights = name.removeprefix(OPEN_CLIP).partition("@")
    if not model:
        raise ConfigError(f"{name!r} names no model; write {OPEN_CLIP}ViT-B-32@laion2b_s34b_b79k")
    return OpenClipEncoder.from_pretrained(model, weights or None, cache_dir=cache_dir)


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
