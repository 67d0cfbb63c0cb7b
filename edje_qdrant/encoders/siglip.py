"""SigLIP and SigLIP2 (fixed resolution) on transformers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from edje_qdrant.encoders.hub import HubModel, HubOptions, find_model
from edje_qdrant.encoders.settings import INSTEAD, settings_folder
from edje_qdrant.encoders.siglip_pixels import SiglipPixels
from edje_qdrant.encoders.weights import HashedModule
from edje_qdrant.errors import CheckpointError, ConfigError
from edje_qdrant.images import to_rgb
from edje_qdrant.images.resize import Resize
from edje_qdrant.logs import without_messages
from edje_qdrant.threads import TRANSFORMERS_LOCK

if TYPE_CHECKING:
    from transformers import SiglipModel

__all__ = ["SiglipEncoder"]


class SiglipEncoder(HashedModule):
    """Encode images and texts with SigLIP.

    Args:
        siglip: Both towers.
        image_processor: How images become pixels.
        tokenizer: transformers' tokenizer of the text tower.
        name: The encoder's name in contracts.
        token_tower: A second vision tower for the vision tokens, if they do not come from the
            tower of the image embedding.
    """

    def __init__(
        self,
        siglip: SiglipModel,
        image_processor: SiglipPixels,
        tokenizer: Any,
        *,
        name: str,
        token_tower: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.siglip = siglip
        self.token_tower = token_tower
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self._name = name
        # Texts and ids of the last call: a search needs them to encode, and to see what is cut.
        self._last_ids: tuple[tuple[str, ...], NDArray[np.int64]] | None = None

    @classmethod
    def from_config(
        cls,
        name_or_path: str | Path | HubModel,
        *,
        name: str,
        separate_token_tower: bool = False,
    ) -> SiglipEncoder:
        """Create the encoder from SigLIP's settings, without its weights.

        Args:
            name_or_path: Folder, hub id or model on the hub, with `config.json`, the image
                processor's and the tokenizer's files.
            name: The encoder's name in contracts.
            separate_token_tower: Whether vision tokens come from a second vision tower.

        Raises:
            CheckpointError: A file is missing or unreadable.
        """
        with TRANSFORMERS_LOCK:
            from transformers import AutoTokenizer, SiglipConfig, SiglipModel
            from transformers.initialization import no_init_weights

        folder = settings_folder(name_or_path, model_type="siglip", image_processor=True)
        image_processor = SiglipPixels.from_folder(folder)
        try:
            # from_pretrained would warn of token ids that transformers itself has by default.
            config = SiglipConfig.from_json_file(folder / "config.json")
            tokenizer = AutoTokenizer.from_pretrained(folder, config=config)
            with (
                TRANSFORMERS_LOCK,
                no_init_weights(),
            ):  # random numbers for 900M weights take a minute
                siglip = SiglipModel(config)
            tower = copy.deepcopy(siglip.vision_model) if separate_token_tower else None
        except Exception as error:  # transformers raises whatever its parsers raise
            raise CheckpointError(
                f"cannot read SigLIP's settings in {folder} ({error}); copy or download them again",
                path=str(folder),
            ) from error
        return cls(siglip, image_processor, tokenizer, name=name, token_tower=tower)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> SiglipEncoder:
        """Load a SigLIP with its weights, to train an EDJE model on top of it.

        Args:
            name_or_path: Folder, or hub id, optionally with a revision: `google/siglip@main`.
            revision: Branch, tag or commit on the hub.
            cache_dir: Folder for downloads; by default that of huggingface_hub.
            token: Access token of the hub; by default the stored one.
            local_files_only: Make no request: use only what was downloaded before.

        Raises:
            CheckpointError: There is no such SigLIP, or one of its files is unreadable.
            ConfigError: An option is invalid.
        """
        options = HubOptions(
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        found = find_model(name_or_path, options, what="SigLIP", instead=INSTEAD)
        with TRANSFORMERS_LOCK:
            from transformers import SiglipModel

        source = found.repo_id if isinstance(found, HubModel) else str(found)
        extra = found.arguments() if isinstance(found, HubModel) else {}
        encoder = cls.from_config(found, name=Path(name_or_path).name)
        try:
            encoder.siglip = SiglipModel.from_pretrained(
                source, config=encoder.siglip.config, **extra
            )
        except Exception as error:  # transformers raises whatever its parsers raise
            raise CheckpointError(
                f"cannot load SigLIP's weights from {name_or_path} ({error})",
                path=str(name_or_path),
            ) from error
        return encoder

    def save(self, folder: Path) -> None:
        """Save everything but the weights: settings, image processor, tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        # transformers compares with its defaults, and warns of them as if they were this model's.
        with without_messages("transformers.configuration_utils", "_token_id must be"):
            self.siglip.config.save_pretrained(folder)
        self.image_processor.save(folder)
        self.tokenizer.save_pretrained(folder)

    @property
    def name(self) -> str:
        """Return the encoder's name in contracts."""
        return self._name

    @property
    def revision(self) -> str:
        """Return the hash of the weights."""
        return self.weights_hash

    @property
    def preprocessing(self) -> str:
        """Return the hash of the image processor's settings that decide the pixels."""
        return self.image_processor.hash()

    @property
    def embedding_dim(self) -> int:
        """Return `d`, the width of the embeddings."""
        return int(self.siglip.text_model.head.out_features)

    @property
    def hidden_size(self) -> int:
        """Return `d_v`, the width of a vision token."""
        return int(self.siglip.vision_model.config.hidden_size)

    @property
    def num_patches(self) -> int:
        """Return `n`, the number of vision tokens of an image."""
        return int(self.siglip.vision_model.embeddings.num_patches)

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Return the rows and columns of the patches; SigLIP has no class token."""
        config = self.siglip.vision_model.config
        side = int(config.image_size) // int(config.patch_size)
        return side, side

    @property
    def num_heads(self) -> int:
        """Return the number of attention heads of the vision tower."""
        return int(self.siglip.vision_model.config.num_attention_heads)

    @property
    def layer_norm_eps(self) -> float:
        """Return the epsilon of the vision tower's layer norms."""
        return float(self.siglip.vision_model.config.layer_norm_eps)

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Preprocess images to `(B, 3, H, W)` float32 on the CPU; thread-safe.

        Raises:
            ImageReadError: An image's data cannot be decoded.
        """
        return self.image_processor.process([to_rgb(image) for image in images])

    @property
    def resize(self) -> Resize:
        """Return how an RGB image is resized and cropped; decoder processes do it."""
        return self.image_processor.resize

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return the input values `(B, 3, H, W)` of resized images `(B, H, W, 3)` uint8."""
        return self.image_processor.normalise(pixels)

    def seen_area(self, width: int, height: int) -> tuple[float, float, float, float]:  # noqa: ARG002
        """Return `(0, 0, 1, 1)`: images are squashed to a square, so the grid covers them.

        Raises:
            ConfigError: The image processor crops images.
        """
        if self.image_processor.do_center_crop:
            raise ConfigError(
                f"the image processor of {self.name} crops images, so it is not known which part "
                "of one its patches show; a SigLIP that resizes alone can be laid over it"
            )
        return 0.0, 0.0, 1.0, 1.0

    def encode_pixels(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pixels: embeddings `(B, d)`, unit length, and vision tokens `(B, n, d_v)`.

        The vision tokens are the tower's last hidden state after its final layer norm.
        """
        weight = self.siglip.logit_scale
        # On a GPU with the channels last, the patch embedding's output is contiguous as the layers
        # read it; otherwise every addition and normalisation of the tower would copy.
        layout = torch.channels_last if weight.is_cuda else torch.preserve_format
        pixel_values = pixel_values.to(weight.device, weight.dtype, memory_format=layout)
        output = self.siglip.vision_model(pixel_values=pixel_values)
        tokens = output.last_hidden_state  # (B, n, d_v)
        if self.token_tower is not None:
            tokens = self.token_tower(pixel_values=pixel_values).last_hidden_state
        return functional.normalize(output.pooler_output.float(), dim=-1), tokens

    @property
    def text_tower(self) -> nn.Module:
        """Return the module with the weights that `encode_ids` uses."""
        tower: nn.Module = self.siglip.text_model
        return tower

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return ids `(B, t)`, always padded to the length that SigLIP was trained with."""
        key, last = tuple(texts), self._last_ids
        if last is None or last[0] != key:
            encoded = self.tokenizer(
                list(texts),
                padding="max_length",
                truncation=True,
                max_length=self.siglip.text_model.config.max_position_embeddings,
            )
            # The tokenizer's own conversion to tensors takes longer than all the rest.
            last = self._last_ids = (key, np.array(encoded["input_ids"], np.int64))
        return torch.from_numpy(last[1]).to(self.siglip.logit_scale.device, copy=True)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Encode texts that are already cleaned: `(B, d)`, unit length.

        No attention mask is passed: SigLIP was trained to attend to the padding.
        """
        return self.encode_ids(self.tokenize(texts))

    def encode_ids(self, ids: Tensor) -> Tensor:
        """Encode the ids `(B, t)` of `tokenize`: `(B, d)`, unit length."""
        output = self.siglip.text_model(input_ids=ids)
        return functional.normalize(output.pooler_output.float(), dim=-1)
