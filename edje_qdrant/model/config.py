"""The configuration in a model's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from edje_qdrant.errors import ConfigError

__all__ = ["IMAGE_TOKEN", "MODEL_TYPE", "AdapterKind", "EDJEConfig"]

#: The special token for images in the joint encoder's vocabulary.
IMAGE_TOKEN = "<image>"
AdapterKind = Literal["compressed", "local"]
_FORMAT_VERSION = 1
#: `model_type` in `config.json`, by which programs tell one kind of model from another.
MODEL_TYPE = "edje"


@dataclass(frozen=True, slots=True)
class EDJEConfig:
    """The sizes of one model; the settings of its encoder and language model are in sub-folders.

    Attributes:
        encoder: Name of the stage-1 encoder.
        adapter: `compressed` (learnable queries) or `local` (one token per patch).
        num_tokens: `m`, tokens per image.
        vision_hidden_size: `d_v`, width of a vision token.
        token_dim: `d_text`, width of a token and of the joint encoder.
        embedding_dim: `d`, width of the stage-1 vector.
        adapter_hidden_size: Width of the adapter's MLP.
        max_caption_tokens: Word pieces read of a caption; longer captions are cut.
        separate_token_tower: Whether vision tokens come from a second vision tower.
        encoder_revision: Hash of the encoder's weights as saved.
        adapter_hash: Hash of the adapter's weights as saved.
        format_version: Version of the folder's layout.
        model_type: `edje`, also for a folder that does not say so.
    """

    encoder: str
    adapter: AdapterKind
    num_tokens: int
    vision_hidden_size: int
    token_dim: int
    embedding_dim: int
    adapter_hidden_size: int = 8192
    max_caption_tokens: int = 61
    separate_token_tower: bool = False
    encoder_revision: str = ""
    adapter_hash: str = ""
    format_version: int = _FORMAT_VERSION
    model_type: str = MODEL_TYPE

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: A field has a wrong type or an invalid value.
        """
        if self.format_version != _FORMAT_VERSION:
            raise ConfigError(
                f"format_version is {self.format_version!r} and this version of edje-qdrant reads "
                f"{_FORMAT_VERSION}; upgrade edje-qdrant"
            )
        if self.model_type != MODEL_TYPE:
            raise ConfigError(
                f"model_type is {self.model_type!r}, and a model of this package has {MODEL_TYPE!r}"
            )
        if self.adapter not in ("compressed", "local"):
            raise ConfigError(f"adapter must be 'compressed' or 'local', not {self.adapter!r}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (type(value) is not int or value < 1):
                raise ConfigError(f"{field.name} must be a positive integer, not {value!r}")
            if field.type in ("str", "bool") and type(value).__name__ != field.type:
                raise ConfigError(f"{field.name} must be of type {field.type}, not {value!r}")

    @property
    def max_positions(self) -> int:
        """Return the length of the longest sequence: caption, tokens, `[CLS]` and two `[SEP]`."""
        return self.max_caption_tokens + 3 + self.num_tokens

    def as_dict(self) -> dict[str, Any]:
        """Return the configuration as a JSON object."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EDJEConfig:
        """Read a configuration from a JSON object.

        Raises:
            ConfigError: A field is missing, unknown or invalid.
        """
        known = {f.name for f in fields(cls)}
        required = {
            "encoder", "adapter", "num_tokens", "vision_hidden_size", "token_dim", "embedding_dim",
        }  # fmt: skip
        unknown, missing = sorted(set(data) - known), sorted(required - set(data))
        if unknown or missing:
            raise ConfigError(
                f"not a configuration of an EDJE model (missing {missing}, unknown {unknown})"
            )
        return cls(**data)
