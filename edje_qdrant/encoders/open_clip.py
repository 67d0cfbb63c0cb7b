"""Encoders of the package open_clip: CLIP, SigLIP and others (extra `open-clip`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from edje_qdrant.encoders.open_clip_models import (
    build_clip,
    load_clip,
    model_settings,
    read_settings,
    tokenizer_for,
    write_settings,
)
from edje_qdrant.encoders.open_clip_pixels import PixelSettings
from edje_qdrant.encoders.weights import HashedModule
from edje_qdrant.errors import CheckpointError
from edje_qdrant.images.resize import Resize

__all__ = ["OPEN_CLIP", "OpenClipEncoder"]

#: Prefix of open_clip encoders' names: `open_clip:ViT-B-32@laion2b_s34b_b79k`.
OPEN_CLIP = "open_clip:"

# OpenAI's values, for models that have no weights and settings of their own.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class OpenClipEncoder(HashedModule):
    """Encode images and texts with a model of open_clip.

    Args:
        clip: Both towers.
        settings: open_clip's `model_cfg`.
        pixels: Preprocessing of images.
        tokenizer: open_clip's tokenizer of the text tower.
        name: The encoder's name in contracts.
    """

    def __init__(
        self,
        clip: Any,
        settings: Mapping[str, Any],
        pixels: PixelSettings,
        tokenizer: Any,
        *,
        name: str,
    ) -> None:
        super().__init__()
        self.clip = clip
        self.settings = dict(settings)
        self.pixel_settings = pixels
        self.tokenizer = tokenizer
        self._name = name
        self._hidden_size, rows, columns = _map_shape(_Vision(clip.visual), pixels.size)
        self._patch_grid = (rows, columns)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        pretrained: str | None = None,
        *,
        tokenizer: str | Path | None = None,
        cache_dir: str | Path | None = None,
    ) -> OpenClipEncoder:
        """Load a model of open_clip with its weights, to train an EDJE model on top of it.

        Args:
            name: open_clip's name: `ViT-B-32`, `ViT-L-14`, `ViT-SO400M-14-SigLIP2-378`, ...,
                `hf-hub:<id>` or `local-dir:<folder>`.
            pretrained: Tag of the weights (`openai`, `webli`, ...), or a file with them; not needed
                for the hub or a folder.
            tokenizer: Folder with a transformers tokenizer's files, in place of the model's hub
                id.
            cache_dir: Folder for downloads of weights; by default that of huggingface_hub.

        Raises:
            MissingExtraError: open_clip is not installed.
            CheckpointError: There is no such model, or its weights or tokenizer cannot be read.
        """
        clip, settings, pixels = load_clip(name, pretrained, cache_dir=cache_dir)
        if tokenizer is None and name.startswith("local-dir:"):
            tokenizer = name.removeprefix("local-dir:")
        return cls(
            clip, settings, pixels, tokenizer_for(settings, tokenizer),
            name=OPEN_CLIP + name + (f"@{Path(pretrained).name}" if pretrained else ""),
        )  # fmt: skip

    @classmethod
    def untrained(cls, name: str, *, tokenizer: str | Path | None = None) -> OpenClipEncoder:
        """Build a model of open_clip with random weights and CLIP's preprocessing.

        Args:
            name: As open_clip names it.
            tokenizer: As in `from_pretrained`.

        Raises:
            MissingExtraError: open_clip is not installed.
            CheckpointError: There is no such model, or its tokenizer cannot be read.
        """
        settings = model_settings(name)
        size = settings["vision_cfg"].get("image_size", 224)
        pixels = PixelSettings.from_dict({"size": size, "mean": _CLIP_MEAN, "std": _CLIP_STD})
        return cls._built(settings, pixels, tokenizer, source=name, name=OPEN_CLIP + name)

    @classmethod
    def from_config(cls, folder: str | Path, *, name: str) -> OpenClipEncoder:
        """Create the encoder from a folder that `save` wrote, without its weights.

        Args:
            folder: The folder.
            name: The encoder's name in contracts.

        Raises:
            MissingExtraError: open_clip is not installed.
            CheckpointError: A file is missing or unreadable.
        """
        settings, pixels = read_settings(Path(folder))
        return cls._built(settings, pixels, folder, source=folder, name=name, weights_follow=True)

    @classmethod
    def _built(
        cls,
        settings: Mapping[str, Any],
        pixels: PixelSettings,
        tokenizer: str | Path | None,
        *,
        source: str | Path,
        name: str,
        weights_follow: bool = False,
    ) -> OpenClipEncoder:
        read = tokenizer_for(settings, tokenizer)
        try:
            clip = build_clip(settings, weights_follow=weights_follow)
            return cls(clip, settings, pixels, read, name=name)
        except Exception as error:  # invalid settings raise errors of any type
            raise CheckpointError(
                f"cannot build the open_clip model that {source} describes ({error}); check its "
                "settings, and for a text tower of transformers that the hub can be reached",
                path=str(source),
            ) from error

    def save(self, folder: Path) -> None:
        """Save everything but the weights: settings, and the tokenizer if it has files."""
        folder.mkdir(parents=True, exist_ok=True)
        write_settings(folder, self.settings, self.pixel_settings)
        if hasattr(self.tokenizer, "save_pretrained"):
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
        """Return the hash of the preprocessing settings."""
        return self.pixel_settings.hash()

    @property
    def embedding_dim(self) -> int:
        """Return `d`, the width of the embeddings."""
        return int(self.settings["embed_dim"])

    @property
    def hidden_size(self) -> int:
        """Return `d_v`, the width of a vision token."""
        return self._hidden_size

    @property
    def num_patches(self) -> int:
        """Return `n`, the number of vision tokens of an image."""
        return self._patch_grid[0] * self._patch_grid[1]

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Return rows and columns of the patches, or of the last feature map."""
        return self._patch_grid

    @property
    def num_heads(self) -> int:
        """Return the heads of the vision tower's last attention; else one per 64 of width."""
        heads = [
            int(module.num_heads)
            for name, module in self.clip.visual.named_modules()
            if isinstance(getattr(module, "num_heads", None), int) and "pool" not in name
        ]
        fitting = [*reversed(heads), max(1, self.hidden_size // 64), 1]
        return next(number for number in fitting if self.hidden_size % number == 0)

    @property
    def layer_norm_eps(self) -> float:
        """Return the epsilon of the vision tower's last layer norm; 1e-5 without any."""
        found = [
            module.eps
            for name, module in self.clip.visual.named_modules()
            if isinstance(module, nn.LayerNorm) and "pool" not in name
        ]
        return float(found[-1]) if found else 1e-5

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Preprocess images to `(B, 3, H, W)` float32 on the CPU; thread-safe.

        Raises:
            ImageReadError: An image cannot be decoded, or its sides differ too much.
        """
        return self.pixel_settings.pixels(images)

    @property
    def resize(self) -> Resize:
        """Return how an RGB image is resized, cropped and padded; decoder processes do it."""
        return self.pixel_settings.resize

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return the input values `(B, 3, H, W)` of resized images `(B, H, W, 3)` uint8."""
        return self.pixel_settings.normalise(pixels)

    def seen_area(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the area of an image of this size that is seen; see `Encoder.seen_area`."""
        return self.pixel_settings.seen_area(width, height)

    def encode_pixels(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pixels: embeddings `(B, d)`, unit length, and vision tokens `(B, n, d_v)`.

        The vision tokens are the tower's last hidden state before pooling, one per patch, without
        the class token; after the final layer norm, if that comes before pooling. For a
        convolutional tower they are the positions of the last feature map, row by row.
        """
        weight = self.clip.logit_scale
        # (B, d) and (B, d_v, h, w)
        pooled, grid = _look(self.clip.visual, pixel_values.to(weight.device, weight.dtype))
        return functional.normalize(pooled.float(), dim=-1), grid.flatten(2).transpose(1, 2)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return ids `(B, t)`, padded and cut to the text tower's full length."""
        ids: Tensor = self.tokenizer(list(texts))
        return ids.to(self.clip.logit_scale.device)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Encode texts that are already cleaned: `(B, d)`, unit length."""
        return self.encode_ids(self.tokenize(texts))

    def encode_ids(self, ids: Tensor) -> Tensor:
        """Encode the ids `(B, t)` of `tokenize`: `(B, d)`, unit length."""
        return functional.normalize(self.clip.encode_text(ids).float(), dim=-1)

    @property
    def text_tower(self) -> nn.Module:
        """Return the module with the weights that `encode_ids` uses."""
        clip: nn.Module = self.clip
        return clip


def _look(visual: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the vision tower's output: pooled `(B, d)` and feature map `(B, d_v, h, w)`."""
    # CoCa pools before its norm, and CLIPA normalises the pooled vector: do not apply it to tokens.
    pools_first = getattr(visual, "attn_pool", None) is not None
    pools_first = pools_first or getattr(visual, "final_ln_after_pool", False)
    output = visual.forward_intermediates(
        pixels, indices=1, normalize_intermediates=not pools_first, output_fmt="NCHW"
    )
    return output["image_features"], output["image_intermediates"][-1]


class _Vision(nn.Module):
    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels: Tensor) -> Tensor:
        return _look(self.visual, pixels)[1]


def _map_shape(vision: _Vision, size: tuple[int, int]) -> tuple[int, int, int]:
    """Return width, rows and columns of the vision tokens, from a pass on the `meta` device."""
    tensors = {**dict(vision.named_parameters()), **dict(vision.named_buffers())}
    hollow = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    dtype = next(vision.parameters()).dtype
    with torch.no_grad():
        pixels = torch.empty(1, 3, *size, device="meta", dtype=dtype)
        _, width, rows, columns = functional_call(vision, hollow, (pixels,)).shape
    return int(width), int(rows), int(columns)
