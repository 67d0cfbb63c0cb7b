"""The module with which sentence-transformers' own `CrossEncoder` loads a model.

`EDJECrossEncoder.save_pretrained` writes the folder.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Self

from edje_qdrant.checks import check_texts
from edje_qdrant.errors import ConfigError, MissingExtraError
from edje_qdrant.images import ignore_decoder_warnings
from edje_qdrant.integrations.cross_encoder import score_pixels
from edje_qdrant.integrations.image_inputs import load_image, read_pair
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.queries import read_pixels
from edje_qdrant.rerank.reranker import Reranker

try:
    from sentence_transformers.base.modules import InputModule
except ImportError as error:
    raise MissingExtraError("sentence-transformers", "sentence-transformers") from error

__all__ = ["EDJEModule"]


class EDJEModule(InputModule):
    """Score pairs of a text and an image, as the only module of a `CrossEncoder`.

    For inference alone. `CrossEncoder(folder, trust_remote_code=True)` loads it from a folder of
    `EDJECrossEncoder.save_pretrained`; `CrossEncoder(modules=[EDJEModule(model)])` wraps a model.
    Pairs are those of `EDJECrossEncoder.predict`, without ids; addresses are not fetched.

    Args:
        model: The model.

    Examples:
        >>> from sentence_transformers import CrossEncoder
        >>> EDJECrossEncoder("demo").save_pretrained("edje-demo")
        >>> encoder = CrossEncoder("edje-demo", trust_remote_code=True)
        >>> encoder.rank("a red star", ["one.png", "two.png"], top_k=1)
        [{'corpus_id': 1, 'score': 3.2}]
    """

    def __init__(self, model: EDJEModel) -> None:
        super().__init__()
        self.model = model
        self._reranker = Reranker(model)

    @property
    def modalities(self) -> list[str]:
        """Return what may be in a pair."""
        return ["text", "image"]

    @property
    def tokenizer(self) -> Any:
        """Return the joint encoder's tokenizer."""
        return self.model.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Return the number of word pieces that are read of a text."""
        return self.model.joint_encoder.max_caption_length

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """Read the images of `n` pairs, each of them once.

        Args:
            inputs: The pairs.
            prompt: Put before each text.
            options: Must be empty.

        Returns:
            `pixel_values` `(images, 3, H, W)`, and for each pair its text in `texts` and the place
            of its image in `places`.

        Raises:
            ConfigError: A pair is not a text and an image, or there are options.
            ImageReadError: An image cannot be read.
        """
        if options:
            raise ConfigError(f"this model has no options {', '.join(options)}; leave them out")
        pairs = [read_pair(pair) for pair in inputs]
        texts = [(prompt or "") + pair.text for pair in pairs]
        check_texts("inputs", texts)
        images = [pair.image for pair in pairs]
        keys = [str(image) if isinstance(image, str | Path) else id(image) for image in images]
        place_of = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        different = dict(zip(keys, images, strict=True))
        with warnings.catch_warnings():
            ignore_decoder_warnings()
            pixels = [read_pixels(self.model, load_image(different[key], None)) for key in place_of]
        return {
            "pixel_values": torch.cat(pixels),
            "texts": texts,
            "places": [place_of[key] for key in keys],
        }

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add `scores`, `(n, 1)` logits, to the result of `preprocess`.

        Raises:
            ConfigError: Gradients are wanted.
        """
        if torch.is_grad_enabled() and self.training:
            raise ConfigError(
                "sentence-transformers cannot train this model; use edje_qdrant.training or "
                "edje-qdrant train"
            )
        scores = score_pixels(
            self.model,
            self._reranker,
            features["pixel_values"],
            features["texts"],
            features["places"],
        )
        features["scores"] = torch.from_numpy(scores).to(self.model.device)[:, None]
        return features

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> Self:
        """Load the model; sentence-transformers calls this.

        Args:
            model_name_or_path: The folder, or its id on the hub.
            subfolder: Folder in it.
            token: Of the hub.
            cache_folder: Of the hub's files.
            revision: Of the hub's repository.
            local_files_only: Whether to use files on this machine alone.
            model_kwargs: `dtype` or `torch_dtype`.

        Raises:
            ConfigError: There are other `model_kwargs`.
            CheckpointError: The model cannot be read.
        """
        options = dict(model_kwargs or {})
        dtype = options.pop("dtype", options.pop("torch_dtype", None))
        if options:
            raise ConfigError(f"model_kwargs has {', '.join(options)}; this model has dtype alone")
        folder = cls.load_dir_path(
            model_name_or_path,
            subfolder=subfolder,
            token=token,
            cache_folder=cache_folder,
            revision=revision,
            local_files_only=local_files_only,
        )
        return cls(
            EDJEModel.from_pretrained(folder or model_name_or_path, device="cpu", dtype=dtype)
        )

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write the model into a folder; sentence-transformers calls this.

        Raises:
            CheckpointError: The folder cannot be written.
        """
        self.model.save_pretrained(output_path)
