"""Models, settings and tokenizers of open_clip, which is imported on demand."""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from edje_qdrant.encoders.hub import offline_if_unreachable
from edje_qdrant.encoders.open_clip_pixels import PixelSettings
from edje_qdrant.errors import CheckpointError, ConfigError, EdjeError, MissingExtraError
from edje_qdrant.threads import TRANSFORMERS_LOCK

__all__ = [
    "SETTINGS_FILE",
    "build_clip",
    "load_clip",
    "model_settings",
    "read_settings",
    "tokenizer_for",
    "write_settings",
]

#: open_clip's own file name, so that its `local-dir:` can read the folder too.
SETTINGS_FILE = "open_clip_config.json"
_HUB = "hf-hub:"
_PREFIXES = (_HUB, "local-dir:")


def import_open_clip() -> Any:
    """Import and return open_clip.

    Raises:
        MissingExtraError: It is not installed.
        ConfigError: It is installed and cannot be imported.
    """
    try:
        import open_clip
    except ImportError as error:
        raise MissingExtraError("open-clip-torch", "open-clip") from error
    except RuntimeError as error:  # torchvision, built for another torch
        raise ConfigError(
            f"open_clip is installed and cannot be imported ({error}); install torch and "
            "torchvision together, from one index"
        ) from error
    if getattr(open_clip, "__file__", None) is None:  # a folder of that name on Python's path
        raise MissingExtraError("open-clip-torch", "open-clip")
    return open_clip


def model_settings(name: str) -> dict[str, Any]:
    """Return a copy of open_clip's settings of a model.

    Raises:
        CheckpointError: open_clip knows no such model.
    """
    open_clip = import_open_clip()
    try:
        with offline_if_unreachable(name.startswith(_HUB)):
            found = open_clip.get_model_config(
                name if _is_elsewhere(name) else name.replace("/", "-")
            )
    except Exception as error:  # the hub and parsers raise errors of any type
        raise CheckpointError(
            f"cannot read open_clip's settings of {name} ({error})", path=name
        ) from error
    if found is None:
        known = open_clip.list_models()
        alike = difflib.get_close_matches(name, known, 3) or known[:3]
        raise CheckpointError(
            f"open_clip knows no model {name!r}; it knows {', '.join(alike)}, the others of "
            "open_clip.list_models(), hf-hub:<id> and local-dir:<folder>",
            path=name,
        )
    return dict(found)


def load_clip(
    name: str, pretrained: str | None, *, cache_dir: str | Path | None = None
) -> tuple[nn.Module, dict[str, Any], PixelSettings]:
    """Load a model with its weights, its settings and its preprocessing.

    Args:
        name: open_clip's name.
        pretrained: Tag of the weights, or a file with them.
        cache_dir: Folder for downloads; by default that of huggingface_hub.

    Raises:
        CheckpointError: There is no such model, or its weights cannot be loaded.
    """
    open_clip = import_open_clip()
    settings = model_settings(name)
    if not _is_elsewhere(name):
        tags = open_clip.list_pretrained_tags_by_model(name.replace("/", "-"))
        if pretrained is None:
            raise CheckpointError(
                f"say which weights of {name} to load: open_clip has {', '.join(tags) or 'none'}; "
                "a file with them works too",
                path=name,
            )
        # Weights trained with quick GELU give wrong results with the exact one.
        tag = open_clip.get_pretrained_cfg(name.replace("/", "-"), pretrained) or {}
        settings["quick_gelu"] = bool(settings.get("quick_gelu") or tag.get("quick_gelu"))
    local = name.startswith("local-dir:") or Path(str(pretrained)).is_file()
    try:
        with offline_if_unreachable(not local):
            clip = open_clip.create_model(
                name,
                pretrained=pretrained,
                force_quick_gelu=bool(settings.get("quick_gelu")),
                require_pretrained=True,
                cache_dir=None if cache_dir is None else str(cache_dir),
            )
    except Exception as error:  # open_clip, the hub and torch raise errors of any type
        raise CheckpointError(
            f"cannot load the weights of open_clip's {name} ({error})", path=name
        ) from error
    pixels = PixelSettings.from_dict(open_clip.get_model_preprocess_cfg(clip))
    return clip.eval(), settings, pixels


def build_clip(settings: Mapping[str, Any], *, weights_follow: bool) -> nn.Module:
    """Create a model from its settings, without pretrained weights.

    Args:
        settings: open_clip's `model_cfg`.
        weights_follow: Whether the caller loads weights next; skips random initialisation.
    """
    open_clip = import_open_clip()
    chosen: dict[str, Any] = copy.deepcopy(dict(settings))
    custom_text = chosen.pop("custom_text", False)
    text, vision = chosen["text_cfg"], chosen["vision_cfg"]
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
        custom_text = True
    kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    if "multimodal_cfg" in chosen:
        kind = open_clip.CoCa
    if not weights_follow:
        return kind(**chosen).eval()  # type: ignore[no-any-return]
    with TRANSFORMERS_LOCK:
        from transformers.initialization import no_init_weights

        with no_init_weights():
            return kind(**chosen).eval()  # type: ignore[no-any-return]


def tokenizer_for(settings: Mapping[str, Any], folder: str | Path | None = None) -> Any:
    """Return a model's tokenizer.

    Args:
        settings: open_clip's `model_cfg`.
        folder: Folder of a transformers tokenizer; by default the hub id in the settings. Not
            needed for CLIP's own tokenizer, which open_clip includes.

    Raises:
        CheckpointError: It cannot be read.
    """
    import_open_clip()
    from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer

    text = settings["text_cfg"]
    length = text.get("context_length", DEFAULT_CONTEXT_LENGTH)
    extra = text.get("tokenizer_kwargs") or {}
    name = text.get("hf_tokenizer_name")
    if not name:
        return SimpleTokenizer(context_length=length, **extra)
    source = str(folder or name)
    try:
        with offline_if_unreachable(not Path(source).is_dir()):
            return HFTokenizer(
                source, context_length=length, tokenizer_mode=text.get("tokenizer_mode"), **extra
            )
    except Exception as error:  # transformers raises whatever its parsers raise
        raise CheckpointError(
            f"cannot read the tokenizer {source} ({error}); pass tokenizer=, a folder with the "
            f"files of {name}",
            path=source,
        ) from error


def write_settings(folder: Path, settings: Mapping[str, Any], pixels: PixelSettings) -> None:
    """Write `open_clip_config.json` in open_clip's own layout."""
    content = {"model_cfg": dict(settings), "preprocess_cfg": pixels.as_dict()}
    (folder / SETTINGS_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_settings(folder: Path) -> tuple[dict[str, Any], PixelSettings]:
    """Read the file that `write_settings` wrote.

    Raises:
        CheckpointError: It is missing or unreadable.
    """
    path = folder / SETTINGS_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings = content["model_cfg"]
        if not all(key in settings for key in ("embed_dim", "vision_cfg", "text_cfg")):
            raise ValueError("model_cfg lacks embed_dim, vision_cfg or text_cfg")
        return dict(settings), PixelSettings.from_dict(content["preprocess_cfg"])
    except (OSError, ValueError, KeyError, TypeError, EdjeError) as error:
        raise CheckpointError(
            f"cannot read the settings of an open_clip model in {path} ({error!r}); copy or "
            "download them again",
            path=str(folder),
        ) from error


def _is_elsewhere(name: str) -> bool:
    return name.startswith(_PREFIXES)
