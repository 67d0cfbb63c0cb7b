"""The parts of a model, as data: what readers return and `EDJEModel` is assembled from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from edje_qdrant.encoders.protocol import Encoder
from edje_qdrant.model.adapter import CompressedAdapter, LocalAdapter, build_adapter
from edje_qdrant.model.calibration import Calibration
from edje_qdrant.model.config import IMAGE_TOKEN, AdapterKind, EDJEConfig
from edje_qdrant.model.joint_encoder import JointEncoder, extend_positions

if TYPE_CHECKING:
    from transformers import BertForMaskedLM

__all__ = ["Checkpoint", "new_checkpoint"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Hold all parts of one model.

    Attributes:
        encoder: The stage-1 encoder.
        adapter: Vision tokens -> tokens.
        joint_encoder: Caption and tokens -> logit.
        tokenizer: The joint encoder's tokenizer.
        config: The model's sizes.
        calibration: What the logits mean, if that was fitted.
        source: The folder, hub id or `demo` from which the model can be loaded, if known.
    """

    encoder: Encoder
    adapter: CompressedAdapter | LocalAdapter
    joint_encoder: JointEncoder
    tokenizer: Any
    config: EDJEConfig
    calibration: Calibration | None = None
    source: str | None = None

    def modules(self) -> nn.ModuleDict:
        """Return the parts that have weights; their state has the keys of `EDJEModel`'s state."""
        return nn.ModuleDict(
            {
                "encoder": cast("nn.Module", self.encoder),
                "adapter": self.adapter,
                "joint_encoder": self.joint_encoder,
            }
        )


def new_checkpoint(
    encoder: Encoder,
    language_model: BertForMaskedLM,
    tokenizer: Any,
    *,
    adapter: AdapterKind = "compressed",
    num_tokens: int = 64,
    adapter_hidden_size: int = 8192,
    max_caption_tokens: int = 61,
) -> Checkpoint:
    """Create the parts of a new model; see `EDJEModel.build`."""
    bert = language_model.config
    config = EDJEConfig(
        encoder=encoder.name,
        adapter=adapter,
        num_tokens=encoder.num_patches if adapter == "local" else num_tokens,
        vision_hidden_size=encoder.hidden_size,
        token_dim=bert.hidden_size,
        embedding_dim=encoder.embedding_dim,
        adapter_hidden_size=adapter_hidden_size,
        max_caption_tokens=max_caption_tokens,
        separate_token_tower=getattr(encoder, "token_tower", None) is not None,
    )
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    if bert.vocab_size < len(tokenizer):
        language_model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    extend_positions(language_model, config.max_positions)
    return Checkpoint(
        encoder,
        build_adapter(
            config,
            num_heads=encoder.num_heads,
            activation=bert.hidden_act,
            layer_norm_eps=encoder.layer_norm_eps,
        ),
        JointEncoder(
            language_model,
            sep_token_id=tokenizer.sep_token_id,
            embedding_dim=encoder.embedding_dim,
            max_caption_tokens=max_caption_tokens,
        ),
        tokenizer,
        config,
    )
