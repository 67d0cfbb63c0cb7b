"""The two models of the published model card: one for indexing, one for ranking.

Both load the whole published state with `load_state_dict(checkpoint["model"], strict=False)` and
keep only the tensors they need.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from edje_qdrant.encoders.settings import settings_folder
from edje_qdrant.errors import CheckpointError, ConfigError
from edje_qdrant.model.adapter import build_adapter
from edje_qdrant.model.checkpoints.match_tensors import match_tensors
from edje_qdrant.model.checkpoints.published import (
    CAPTION_ROOM,
    adapter_sizes,
    fit_tables,
    language_settings,
    published_names,
    tidy,
)
from edje_qdrant.model.config import EDJEConfig
from edje_qdrant.model.joint_encoder import JointEncoder, extend_positions, new_language_model
from edje_qdrant.threads import TRANSFORMERS_LOCK

if TYPE_CHECKING:
    from transformers import BertConfig

__all__ = ["EDJEModelForIndexing", "EDJEModelForRanking"]

_PATH = "passed to load_state_dict"


class EDJEModelForIndexing(nn.Module):
    """Encode pixels to the tokens that are stored.

    Args:
        siglip_path: Folder or hub id with SigLIP's settings.
        language_model_path: Folder or hub id with the language model's settings.
        num_compressed_tokens: `m`; for a checkpoint with the local adapter, the number of patches.

    Raises:
        CheckpointError: The settings cannot be read.
    """

    def __init__(
        self, siglip_path: str | Path, language_model_path: str | Path, num_compressed_tokens: int
    ) -> None:
        super().__init__()
        folder = settings_folder(siglip_path, model_type="siglip", tokenizer=False)
        self._bert, _ = language_settings(language_model_path)
        try:
            with TRANSFORMERS_LOCK:
                from transformers import SiglipVisionConfig, SiglipVisionModel

                tower = SiglipVisionModel(SiglipVisionConfig.from_pretrained(folder))
        except Exception as error:  # transformers raises whatever its parsers raise
            raise CheckpointError(
                f"cannot read SigLIP's settings in {folder} ({error})", path=str(folder)
            ) from error
        # Some versions of transformers wrap the tower once more.
        self.token_tower = cast("nn.Module", getattr(tower, "vision_model", tower))
        self._vision = tower.config
        self._config = EDJEConfig(
            encoder=Path(siglip_path).name,
            adapter="compressed",
            num_tokens=num_compressed_tokens,
            vision_hidden_size=self._vision.hidden_size,
            token_dim=self._bert.hidden_size,
            embedding_dim=self._vision.hidden_size,
        )
        self.adapter = self._build_adapter()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode pixels `(B, 3, H, W)` float32 to tokens `(B, m, d_text)`."""
        vision_tokens = self.token_tower(pixel_values=pixel_values).last_hidden_state  # (B, n, d_v)
        return cast("Tensor", self.adapter(vision_tokens))

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load the published state, or this module's own; `strict` is ignored.

        Raises:
            CheckpointError: A tensor that this model needs is missing or has another shape.
        """
        if set(state_dict) == set(self.state_dict()):
            return super().load_state_dict(state_dict, strict, assign)
        state = tidy(state_dict, path=_PATH)
        sizes = adapter_sizes(state, path=_PATH)
        embeddings: Any = self.token_tower.embeddings
        num_tokens = sizes.num_tokens or int(embeddings.num_patches)
        if num_tokens != self._config.num_tokens:
            raise CheckpointError(
                f"the checkpoint {_PATH} makes {num_tokens} tokens per image; build this model "
                f"with num_compressed_tokens={num_tokens}, not {self._config.num_tokens}",
                path=_PATH,
            )
        self._config = replace(
            self._config, adapter=sizes.kind, adapter_hidden_size=sizes.hidden_size
        )
        parameter = next(self.parameters())
        self.adapter = self._build_adapter().to(parameter.device, parameter.dtype)
        self.adapter.train(self.training)
        matched = match_tensors(self, state, path=_PATH, name_of=published_names(state))
        return super().load_state_dict(matched, strict=True, assign=assign)

    def _build_adapter(self) -> nn.Module:
        return build_adapter(
            self._config,
            num_heads=self._vision.num_attention_heads,
            activation=self._bert.hidden_act,
            layer_norm_eps=self._vision.layer_norm_eps,
        )


class EDJEModelForRanking(nn.Module):
    """Score captions against stored tokens with the joint encoder.

    Args:
        language_model_path: Folder or hub id with the language model's settings.
        num_compressed_tokens: `m`, tokens per image.

    Raises:
        CheckpointError: The settings cannot be read.
    """

    def __init__(self, language_model_path: str | Path, num_compressed_tokens: int) -> None:
        super().__init__()
        self._bert, self._tokenizer = language_settings(language_model_path)
        self._num_tokens = num_compressed_tokens
        self.joint_encoder = self._build(copy.deepcopy(self._bert))

    def forward(
        self, compressed_tokens: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> Tensor:
        """Score pairs.

        Args:
            compressed_tokens: `(B, m, d_text)`.
            input_ids: `(B, t)` int64, captions: `[CLS] ... [SEP]`, padded on the right.
            attention_mask: `(B, t)`.

        Returns:
            `(B,)` logits; higher is better.

        Raises:
            ConfigError: The tokens have a wrong shape.
        """
        expected = (len(input_ids), self._num_tokens, self._bert.hidden_size)
        if tuple(compressed_tokens.shape) != expected:
            raise ConfigError(
                f"compressed_tokens must have shape {expected}, "
                f"not {tuple(compressed_tokens.shape)}"
            )
        return cast("Tensor", self.joint_encoder(input_ids, attention_mask, compressed_tokens))

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load the published state, or this module's own; `strict` is ignored.

        Raises:
            CheckpointError: A tensor that this model needs is missing or has another shape.
        """
        if set(state_dict) == set(self.state_dict()):
            return super().load_state_dict(state_dict, strict, assign)
        state = tidy(state_dict, path=_PATH)
        parameter = next(self.parameters())
        config = copy.deepcopy(self._bert)
        longest = CAPTION_ROOM + self._num_tokens
        fit_tables(config, self._tokenizer, state, longest, path=_PATH)
        joint_encoder = self._build(config)
        self.joint_encoder = joint_encoder.to(parameter.device, parameter.dtype)
        self.joint_encoder.train(self.training)
        matched = match_tensors(self, state, path=_PATH, name_of=published_names(state))
        return super().load_state_dict(matched, strict=True, assign=assign)

    def _build(self, config: BertConfig) -> JointEncoder:
        language_model = new_language_model(config)
        extend_positions(language_model, CAPTION_ROOM + self._num_tokens)
        joint_encoder = JointEncoder(
            language_model, sep_token_id=self._tokenizer.sep_token_id, embedding_dim=1
        )
        # Ranking uses neither head. Without them, their tensors may be missing from the state.
        joint_encoder.text_projection = nn.Identity()  # type: ignore[assignment]
        language_model.cls = nn.Identity()  # type: ignore[assignment]
        return joint_encoder
