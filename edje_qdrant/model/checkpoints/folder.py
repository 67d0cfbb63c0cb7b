"""Models in folders and on the hub: written to and read from files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from edje_qdrant.encoders.hub import HubModel, HubOptions, find_model
from edje_qdrant.encoders.loading import encoder_from_folder
from edje_qdrant.encoders.weights import hash_weights
from edje_qdrant.errors import CheckpointError, ConfigError
from edje_qdrant.files import kind_of, reason_of, write_atomically
from edje_qdrant.model.calibration import CALIBRATION_FILE, Calibration
from edje_qdrant.model.checkpoints.checkpoint import Checkpoint, new_checkpoint
from edje_qdrant.model.checkpoints.match_tensors import fill, needed_keys
from edje_qdrant.model.checkpoints.published import (
    PUBLISHED_ID,
    PUBLISHED_LANGUAGE_MODEL,
    PUBLISHED_SIGLIP,
    language_settings,
    read_published,
)
from edje_qdrant.model.config import MODEL_TYPE, EDJEConfig
from edje_qdrant.model.joint_encoder import new_language_model

__all__ = [
    "MODEL_FILES",
    "bundled_folder",
    "is_model_folder",
    "read_checkpoint",
    "write_checkpoint",
]

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_ENCODER = "encoder"
_LANGUAGE_MODEL = "language_model"
#: Patterns of a model's files, the weights included.
MODEL_FILES = (_CONFIG, _WEIGHTS, CALIBRATION_FILE, f"{_ENCODER}/*", f"{_LANGUAGE_MODEL}/*")
_INSTEAD = "pass 'demo', a folder written by save_pretrained, or a hub id"


def write_checkpoint(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None) -> None:
    """Write a model into a folder.

    `config.json` is written last: without it a folder is not read as a model.

    Args:
        checkpoint: The model's parts.
        folder: Created if missing; a model in it is replaced.
        dtype: Precision of the stored weights; None keeps each tensor's own.

    Raises:
        CheckpointError: The folder cannot be written.
    """
    modules = checkpoint.modules()
    tensors = modules.state_dict()
    state = {
        name: tensors[name].to("cpu", dtype or tensors[name].dtype).contiguous()
        for name in needed_keys(modules)
    }
    config = replace(
        checkpoint.config,
        encoder_revision=hash_weights(_below(state, "encoder.")),
        adapter_hash=hash_weights(_below(state, "adapter.")),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _CONFIG).unlink(missing_ok=True)
        (folder / CALIBRATION_FILE).unlink(missing_ok=True)  # of the model that is replaced
        checkpoint.encoder.save(folder / _ENCODER)
        checkpoint.joint_encoder.language_model.config.save_pretrained(folder / _LANGUAGE_MODEL)
        checkpoint.tokenizer.save_pretrained(folder / _LANGUAGE_MODEL)
        save_file(state, folder / (_WEIGHTS + ".part"), metadata={"format": "pt"})
        # safetensors creates files that only their owner can read.
        shutil.copymode(folder / _LANGUAGE_MODEL / _CONFIG, folder / (_WEIGHTS + ".part"))
        os.replace(folder / (_WEIGHTS + ".part"), folder / _WEIGHTS)
        if checkpoint.calibration is not None:
            checkpoint.calibration.save(folder)
        text = json.dumps(config.as_dict(), indent=2) + "\n"
        write_atomically(folder / _CONFIG, text.encode())
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            (folder / (_WEIGHTS + ".part")).unlink(missing_ok=True)  # to free its space
        raise CheckpointError(
            f"cannot write the model to {folder} ({error}); choose a folder you may write to",
            path=str(folder),
        ) from error


def bundled_folder() -> Path:
    """Return the folder of the model `demo`."""
    return Path(str(files("edje_qdrant"))) / "demo" / "model"


def is_model_folder(folder: str | Path) -> bool:
    """Return whether a local folder holds a model of this package, readable or not."""
    try:
        data = json.loads((Path(folder) / _CONFIG).read_text(encoding="utf-8"))
        return "adapter" in data and data.get("model_type", MODEL_TYPE) == MODEL_TYPE
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def read_checkpoint(name_or_path: str | Path, options: HubOptions) -> Checkpoint:
    """Find and read a model, in float32 on the CPU.

    Args:
        name_or_path: `demo`, a folder written by `write_checkpoint`, or a hub id.
        options: How to load a model of the hub.

    Raises:
        CheckpointError: There is no such model, or it is unreadable or incomplete.
        ConfigError: A folder is given with a revision.
    """
    if name_or_path == "demo":
        if options.revision is not None:
            raise ConfigError("'demo' is bundled and has no revisions; leave revision out")
        return replace(_read_folder(bundled_folder()), source="demo")
    found = find_model(name_or_path, options, what="model", instead=_INSTEAD)
    if isinstance(found, HubModel):
        return replace(_read_hub(found), source=found.name)
    kind = kind_of(found, CheckpointError)
    if kind == "folder":
        return replace(_read_folder(found), source=str(found.resolve()))
    if kind == "other":
        raise CheckpointError(
            f"{found} is neither a file nor a folder; {_INSTEAD}", path=str(found)
        )
    if found.name in (_CONFIG, _WEIGHTS) and (found.parent / _CONFIG).is_file():
        remedy = f"pass its folder, {found.parent}"
    else:
        remedy = (
            "read a published checkpoint with EDJEModel.from_official_checkpoint or "
            f"`edje-qdrant convert`, or {_INSTEAD}"
        )
    raise CheckpointError(f"{found} is a file, not a folder; {remedy}", path=str(found))


def _read_hub(model: HubModel) -> Checkpoint:
    if model.repo_id == PUBLISHED_ID:
        name = "pytorch_model.pth"
        folder = model.download([name], what="model", instead=_INSTEAD)
        return read_published(
            folder / name,
            siglip=model.sibling(PUBLISHED_SIGLIP),
            language_model=model.sibling(PUBLISHED_LANGUAGE_MODEL),
        )
    return _read_folder(model.download(MODEL_FILES, what="model", instead=_INSTEAD))


def _other_kind(folder: Path) -> str | None:
    """Return what a folder holds that is not a model of this package; None if that is unknown."""
    if not any(folder.iterdir()):
        return f"is empty: it lacks {_CONFIG} and {_WEIGHTS}"
    if (folder / "model" / _CONFIG).is_file() and not (folder / _CONFIG).exists():
        return f"is not a model, but has one in it: pass {folder / 'model'}"
    if (folder / "pytorch_model.pth").is_file():
        return (
            "holds a checkpoint in the published layout: read pytorch_model.pth with "
            "EDJEModel.from_official_checkpoint or `edje-qdrant convert`"
        )
    try:
        data = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        kind = data.get("model_type", MODEL_TYPE)
    except (OSError, ValueError, AttributeError):
        return None
    if kind != MODEL_TYPE:
        return (
            f"holds a model of another kind, {kind}: an encoder or a language model is named in a "
            "training recipe or passed to EDJEModel.build"
        )
    return None


def _read_folder(folder: Path) -> Checkpoint:
    try:
        other = _other_kind(folder)
    except OSError as error:
        raise CheckpointError(
            f"cannot read {folder}: {reason_of(error)}", path=str(folder)
        ) from error
    if other is not None:
        raise CheckpointError(f"{folder} {other}; {_INSTEAD}", path=str(folder))
    missing = [name for name in (_CONFIG, _WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} is not a model: it lacks {' and '.join(missing)}; "
            "pass a folder written by save_pretrained",
            path=str(folder),
        )
    try:
        data = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        config = EDJEConfig.from_dict(data)
        state = load_file(folder / _WEIGHTS)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot read the model in {folder} ({error}); copy or download it again",
            path=str(folder),
        ) from error
    bert, tokenizer = language_settings(folder / _LANGUAGE_MODEL)
    encoder = encoder_from_folder(
        folder / _ENCODER,
        name=config.encoder,
        separate_token_tower=config.separate_token_tower,
    )
    built = new_checkpoint(
        encoder,
        new_language_model(bert),
        tokenizer,
        adapter=config.adapter,
        num_tokens=config.num_tokens,
        adapter_hidden_size=config.adapter_hidden_size,
        max_caption_tokens=config.max_caption_tokens,
    )
    fill(built.modules(), state, path=str(folder))
    found = replace(
        built.config, encoder_revision=config.encoder_revision, adapter_hash=config.adapter_hash
    )
    if found != config or not config.encoder_revision or not config.adapter_hash:
        raise CheckpointError(
            f"{folder / _CONFIG} does not agree with the settings below {folder} "
            f"(it says {config}, they say {found}); save the model again",
            path=str(folder),
        )
    encoder.keep_weights_hash(config.encoder_revision)
    built.adapter.keep_weights_hash(config.adapter_hash)
    return replace(built, config=config, calibration=Calibration.load(folder))


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
