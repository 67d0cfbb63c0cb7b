"""Folders with a tower's settings, checked to be complete.

transformers silently uses its own defaults for a missing file; the checks here prevent that.
"""

from __future__ import annotations

import json
from pathlib import Path

from edje_qdrant.encoders.hub import HubModel, HubOptions, find_model
from edje_qdrant.errors import CheckpointError
from edje_qdrant.files import kind_of

__all__ = ["INSTEAD", "settings_folder"]

_PATTERNS = ["*.json", "*.txt", "*.model"]
_TOKENIZER = ("tokenizer.json", "vocab.txt", "tokenizer.model", "spiece.model")
_IMAGE_PROCESSOR = ("preprocessor_config.json", "processor_config.json")
#: What to pass, for messages.
INSTEAD = (
    "pass a folder with config.json and the tokenizer's and image processor's files, or a hub id"
)


def settings_folder(
    name_or_path: str | Path | HubModel,
    *,
    model_type: str,
    tokenizer: bool = True,
    image_processor: bool = False,
) -> Path:
    """Return the folder of a model's settings, downloaded from the hub (without weights) if needed.

    Args:
        name_or_path: Folder, hub id, or model on the hub.
        model_type: Required `model_type` of `config.json`.
        tokenizer: Whether a tokenizer's files are required.
        image_processor: Whether an image processor's settings are required.

    Raises:
        CheckpointError: There is no such folder or hub id, or it lacks a file.
    """
    if not isinstance(name_or_path, HubModel):
        what = f"{model_type} model"
        name_or_path = find_model(name_or_path, HubOptions(), what=what, instead=INSTEAD)
    if isinstance(name_or_path, HubModel):
        what = f"settings of a {model_type} model"
        folder = name_or_path.download(_PATTERNS, what=what, instead=INSTEAD)
    else:
        folder = name_or_path
    if kind_of(folder, CheckpointError) != "folder":
        raise CheckpointError(f"{folder} is not a folder; {INSTEAD}", path=str(folder))
    wanted = [("config.json",)] + [_TOKENIZER] * tokenizer + [_IMAGE_PROCESSOR] * image_processor
    missing = [names for names in wanted if not any((folder / n).is_file() for n in names)]
    if missing:
        lacks = " and ".join(" or ".join(names) for names in missing)
        raise CheckpointError(
            f"the settings of a {model_type} model in {folder} lack {lacks}; "
            "pass a folder with config.json and the tokenizer's and image processor's files",
            path=str(folder),
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found = config.get("model_type", model_type)
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"cannot read the settings of a {model_type} model in {folder / 'config.json'} "
            f"({error}); copy or download it again",
            path=str(folder),
        ) from error
    if found != model_type:
        raise CheckpointError(
            f"{folder / 'config.json'} holds the settings of a {found} model where those of a "
            f"{model_type} model are needed",
            path=str(folder),
        )
    return folder
