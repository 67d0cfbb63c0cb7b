"""Read the published checkpoint: its layout translated to this package's.

Source: EDJE facts, the published checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edje_qdrant.encoders.hub import HubModel, HubOptions, find_model
from edje_qdrant.encoders.settings import INSTEAD, settings_folder
from edje_qdrant.encoders.siglip import SiglipEncoder
from edje_qdrant.errors import CheckpointError
from edje_qdrant.files import kind_of
from edje_qdrant.model.checkpoints.checkpoint import Checkpoint, new_checkpoint
from edje_qdrant.model.checkpoints.match_tensors import fill
from edje_qdrant.model.config import IMAGE_TOKEN, AdapterKind
from edje_qdrant.model.joint_encoder import new_language_model, repeat_last_row
from edje_qdrant.threads import TRANSFORMERS_LOCK

if TYPE_CHECKING:
    from transformers import BertConfig

__all__ = [
    "CAPTION_ROOM",
    "PUBLISHED_ID",
    "PUBLISHED_LANGUAGE_MODEL",
    "PUBLISHED_SIGLIP",
    "AdapterSizes",
    "adapter_sizes",
    "fit_tables",
    "language_settings",
    "published_names",
    "read_published",
    "tidy",
]

#: Positions of a sequence besides the tokens: 61 word pieces, `[CLS]` and two `[SEP]`.
CAPTION_ROOM = 64
PUBLISHED_ID = "shahafw/edje-vl-image-retrieval-reranker"
PUBLISHED_SIGLIP = "google/siglip2-large-patch16-384"
PUBLISHED_LANGUAGE_MODEL = "microsoft/MiniLM-L12-H384-uncased"

_VISION = "vision_encoder."
# This package's prefix -> the published one; the first match counts.
_PREFIXES = {
    "encoder.siglip.": "clip.",
    "encoder.token_tower.": _VISION,
    "token_tower.": _VISION,
    "adapter.fc1.": "vision_projection.0.",
    "adapter.fc2.": "vision_projection.2.",
    "adapter.": "vision_projection.",
    "joint_encoder.language_model.": "language_model.",
    "joint_encoder.pooler.": "classification_head.0.dense.",
    "joint_encoder.classifier.": "classification_head.1.",
    "joint_encoder.text_projection.": "text_projection.",
}
_WORDS = "language_model.bert.embeddings.word_embeddings.weight"
_POSITIONS = "language_model.bert.embeddings.position_embeddings.weight"
_MLM_BIAS = "language_model.cls.predictions.bias"
_MLM_BIAS_COPY = "language_model.cls.predictions.decoder.bias"


def read_published(
    path: str | Path, *, siglip: str | Path | HubModel, language_model: str | Path | HubModel
) -> Checkpoint:
    """Read a checkpoint in the published layout, in float32 on the CPU.

    Args:
        path: The file.
        siglip: Folder, hub id or model on the hub with SigLIP's settings.
        language_model: Likewise, with the language model's settings.

    Raises:
        CheckpointError: The file is unreadable, lacks a key or has a tensor of a wrong shape.
    """
    state = tidy(_read(Path(path)), path=str(path))
    sizes = adapter_sizes(state, path=str(path))
    bert, tokenizer = language_settings(language_model)
    if not isinstance(siglip, HubModel):
        siglip = find_model(siglip, HubOptions(), what="SigLIP", instead=INSTEAD)
    encoder = SiglipEncoder.from_config(
        siglip,
        name=Path(siglip.name).name,
        separate_token_tower=_separate_towers(state),
    )
    num_tokens = sizes.num_tokens or encoder.num_patches
    fit_tables(bert, tokenizer, state, CAPTION_ROOM + num_tokens, path=str(path))
    checkpoint = new_checkpoint(
        encoder,
        new_language_model(bert),
        tokenizer,
        adapter=sizes.kind,
        num_tokens=num_tokens,
        adapter_hidden_size=sizes.hidden_size,
    )
    fill(checkpoint.modules(), state, path=str(path), name_of=published_names(state))
    # A contract names the weights as they are stored: hash them before any cast.
    _ = encoder.weights_hash, checkpoint.adapter.weights_hash
    return checkpoint


@dataclass(frozen=True, slots=True)
class AdapterSizes:
    """The adapter's sizes, which only the shapes of its tensors tell.

    Attributes:
        kind: Which of the two adapters.
        num_tokens: `m`; None for the local adapter, which has one token per patch.
        hidden_size: Width of the MLP.
    """

    kind: AdapterKind
    num_tokens: int | None
    hidden_size: int


def adapter_sizes(state: Mapping[str, Tensor], *, path: str) -> AdapterSizes:
    """Return the adapter's sizes, from the shapes of its tensors.

    Raises:
        CheckpointError: A tensor is missing or has a wrong number of axes.
    """
    if "vision_projection.0.weight" in state:
        return AdapterSizes("local", None, _shape(state, "vision_projection.0.weight", 2, path)[0])
    num_tokens = _shape(state, "vision_projection.query", 3, path)[1]
    hidden_size = _shape(state, "vision_projection.mlp.fc1.weight", 2, path)[0]
    return AdapterSizes("compressed", num_tokens, hidden_size)


def fit_tables(
    bert: BertConfig, tokenizer: Any, state: dict[str, Tensor], longest: int, *, path: str
) -> None:
    """Set the vocabulary size and number of positions from the shapes of the tensors.

    Neither becomes smaller than the settings say, so that a truncated table does not match later.
    A position table from before its extension is extended in `state`.

    Args:
        bert: The configuration to change.
        tokenizer: The language model's tokenizer, with or without the `<image>` token.
        state: The checkpoint.
        longest: Positions of the longest sequence.
        path: The checkpoint's path, for the error.

    Raises:
        CheckpointError: A tensor is missing or has a wrong number of axes.
    """
    image_token = 0 if IMAGE_TOKEN in tokenizer.get_vocab() else 1
    bert.vocab_size = max(_shape(state, _WORDS, 2, path)[0], len(tokenizer) + image_token)
    if _shape(state, _POSITIONS, 2, path)[0] >= bert.max_position_embeddings:
        state[_POSITIONS] = repeat_last_row(state[_POSITIONS], longest)
        bert.max_position_embeddings = len(state[_POSITIONS])


def _shape(state: Mapping[str, Tensor], name: str, axes: int, path: str) -> tuple[int, ...]:
    if name not in state:
        raise CheckpointError(
            f"the checkpoint {path} lacks {name}; check that it is whole and that it is an EDJE "
            "checkpoint in the published layout",
            path=path,
            missing=[name],
        )
    shape = tuple(state[name].shape)
    if len(shape) != axes:
        raise CheckpointError(
            f"in the checkpoint {path}, {name} has shape {shape}, which should have {axes} axes",
            path=path,
        )
    return shape


def published_names(state: Mapping[str, Tensor]) -> Callable[[str], str]:
    """Return the function that maps this package's keys to the checkpoint's names.

    transformers 4 saved the vision tower one level deeper than transformers 5 does.
    """
    deeper = any(name.startswith(_VISION + "vision_model.") for name in state)
    prefixes = dict(_PREFIXES)
    if deeper:
        prefixes |= {k: v + "vision_model." for k, v in _PREFIXES.items() if v == _VISION}

    def name_of(key: str) -> str:
        for ours, theirs in prefixes.items():
            if key.startswith(ours):
                return theirs + key[len(ours) :]
        return key

    return name_of


def tidy(state: Mapping[str, Tensor], *, path: str) -> dict[str, Tensor]:
    """Check the state's redundant copies and return the state under the names that are used.

    Raises:
        CheckpointError: The second copy of the word embeddings differs from the first.
    """
    state = dict(state)
    words, again = state.get(_WORDS), state.get("text_embeddings.weight")
    if words is not None and again is not None and not torch.equal(words, again):
        raise CheckpointError(
            f"in {path}, text_embeddings.weight {tuple(again.shape)} is not the same as {_WORDS} "
            f"{tuple(words.shape)}, although both are the model's one table; the file is damaged, "
            "download it again",
            path=path,
        )
    if _MLM_BIAS not in state and _MLM_BIAS_COPY in state:
        state[_MLM_BIAS] = state[_MLM_BIAS_COPY]
    return state


def language_settings(name_or_path: str | Path | HubModel) -> tuple[BertConfig, Any]:
    """Return the language model's configuration and tokenizer.

    Raises:
        CheckpointError: They cannot be read.
    """
    with TRANSFORMERS_LOCK:
        from transformers import AutoTokenizer, BertConfig

    folder = settings_folder(name_or_path, model_type="bert")
    try:
        return BertConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers raises whatever its parsers raise
        raise CheckpointError(
            f"cannot read the language model's settings in {folder} ({error}); "
            "copy or download them again",
            path=str(folder),
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    if kind_of(path, CheckpointError) != "file":
        raise CheckpointError(f"there is no file {path}; check the path", path=str(path))
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files older than torch's zip format cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling garbage raises anything
        raise CheckpointError(
            f"cannot read {path} as a torch checkpoint ({error}); download it again",
            path=str(path),
        ) from error
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointError(
            f"{path} has no dictionary of tensors under 'model'; pass the published "
            "pytorch_model.pth or a checkpoint in its layout",
            path=str(path),
        )
    return state


def _separate_towers(state: Mapping[str, Tensor]) -> bool:
    """Return whether the vision tokens' tower differs from the embedding's."""
    name_of = published_names(state)
    inner = "clip.vision_model."
    pairs = [
        (state[name], state.get(name_of("token_tower." + name[len(inner) :])))
        for name in state
        if name.startswith(inner)
    ]
    return any(other is None or not torch.equal(tensor, other) for tensor, other in pairs)
