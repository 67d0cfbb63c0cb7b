"""Write a model into a folder, and read it from one or from the hub."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertForMaskedLM

from edje_qdrant.encoders import encoder_from_folder
from edje_qdrant.encoders.weights import hash_weights
from edje_qdrant.errors import CheckpointError
from edje_qdrant.model.calibration import CALIBRATION_FILE, Calibration
from edje_qdrant.model.checkpoints.match_tensors import match_tensors, needed_keys
from edje_qdrant.model.checkpoints.published import PUBLISHED_ID, language_settings, load_published
from edje_qdrant.model.config import EDJEConfig

if TYPE_CHECKING:
    from edje_qdrant.model.edje import EDJEModel

__all__ = ["load_model", "save_model"]

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_ENCODER = "encoder"
_LANGUAGE_MODEL = "language_model"


def save_model(model: EDJEModel, folder: Path, dtype: torch.dtype | None) -> None:
    """Write a model; `config.json`, without which a folder is no model, comes last.

    Raises:
        CheckpointError: The folder cannot be written.
    """
    tensors = model.state_dict()
    state = {
        name: tensors[name].to("cpu", dtype or tensors[name].dtype).contiguous()
        for name in needed_keys(model)
    }
    config = replace(
        model.config,
        encoder_revision=hash_weights(_below(state, "encoder.")),
        adapter_hash=hash_weights(_below(state, "adapter.")),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _CONFIG).unlink(missing_ok=True)
        (folder / CALIBRATION_FILE).unlink(missing_ok=True)  # another model's, if any
        model.encoder.save(folder / _ENCODER)
        model.joint_encoder.language_model.config.save_pretrained(folder / _LANGUAGE_MODEL)
        model.tokenizer.save_pretrained(folder / _LANGUAGE_MODEL)
        save_file(state, folder / (_WEIGHTS + ".part"), metadata={"format": "pt"})
        # safetensors makes files that only their owner may read.
        shutil.copymode(folder / _LANGUAGE_MODEL / _CONFIG, folder / (_WEIGHTS + ".part"))
        os.replace(folder / (_WEIGHTS + ".part"), folder / _WEIGHTS)
        if model.calibration is not None:
            model.calibration.save(folder)
        text = json.dumps(config.as_dict(), indent=2) + "\n"
        (folder / (_CONFIG + ".part")).write_text(text, encoding="utf-8")
        os.replace(folder / (_CONFIG + ".part"), folder / _CONFIG)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write the model to {folder} ({error}); choose a folder you may write to",
            path=str(folder),
        ) from error
    model.name_or_path = str(folder.resolve())


def load_model(build: Callable[..., EDJEModel], name_or_path: str) -> EDJEModel:
    """Find and read a model, in float32 on the CPU, and put it together with `EDJEModel.build`.

    Raises:
        CheckpointError: There is no such model, or it is unreadable or incomplete.
    """
    if name_or_path == "demo":
        model = _read_folder(build, Path(str(files("edje_qdrant"))) / "demo" / "model")
        model.name_or_path = "demo"
        return model
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        model = _read_folder(build, folder)
        model.name_or_path = str(folder.resolve())
        return model
    if folder.exists():
        raise CheckpointError(
            f"{folder} is a file; a published checkpoint is read with "
            "EDJEModel.from_official_checkpoint or `edje-qdrant convert`",
            path=str(folder),
        )
    model = _read_hub(build, name_or_path)
    model.name_or_path = name_or_path
    return model


def _read_hub(build: Callable[..., EDJEModel], repo_id: str) -> EDJEModel:
    try:
        if repo_id == PUBLISHED_ID:
            path = huggingface_hub.hf_hub_download(repo_id, "pytorch_model.pth")
            return load_published(build, path)
        patterns = [
            _CONFIG, _WEIGHTS, CALIBRATION_FILE, f"{_ENCODER}/*", f"{_LANGUAGE_MODEL}/*",
        ]  # fmt: skip
        folder = huggingface_hub.snapshot_download(repo_id, allow_patterns=patterns)
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise CheckpointError(
            f"no model {repo_id!r}: not a folder here, and the hub does not give it ({error}); "
            "pass 'demo', a folder written by save_pretrained, or a hub id",
            path=repo_id,
        ) from error
    return _read_folder(build, Path(folder))


def _read_folder(build: Callable[..., EDJEModel], folder: Path) -> EDJEModel:
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
    model = build(
        encoder,
        BertForMaskedLM(bert),
        tokenizer,
        adapter=config.adapter,
        num_tokens=config.num_tokens,
        adapter_hidden_size=config.adapter_hidden_size,
        max_caption_tokens=config.max_caption_tokens,
    )
    model.load_state_dict(match_tensors(model, state, path=str(folder)), strict=False)
    found = replace(
        model.config, encoder_revision=config.encoder_revision, adapter_hash=config.adapter_hash
    )
    if found != config or not config.encoder_revision or not config.adapter_hash:
        raise CheckpointError(
            f"{folder / _CONFIG} does not agree with the settings below {folder} (it says {config}"
            f", they say {found}); save the model again",
            path=str(folder),
        )
    model.config = config
    model.calibration = Calibration.load(folder)
    encoder.keep_weights_hash(config.encoder_revision)
    model.adapter.keep_weights_hash(config.adapter_hash)
    return model


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
