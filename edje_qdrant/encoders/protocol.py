"""The protocol of stage-1 encoders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from PIL import Image
from torch import Tensor

from edje_qdrant.images.resize import Resize

__all__ = ["Encoder", "SplitPixels", "split_pixels"]


class SplitPixels(Protocol):
    """The two steps of an encoder's `preprocess`, the first of which needs no torch.

    `preprocess(images)` is `normalise` of the stacked `resize(to_rgb(image))` of each image.
    """

    @property
    def resize(self) -> Resize:
        """Return how an upright RGB image becomes `(H, W, 3)` uint8, of one size for all images.

        It must be picklable, and importable without torch, since decoder processes run it.
        """

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return `(B, 3, H, W)` float32 of pixels `(B, H, W, 3)` uint8, on their device."""


def split_pixels(encoder: object) -> SplitPixels | None:
    """Return an encoder if it has `resize` and `normalise`; None if it only has `preprocess`.

    Also None if `preprocess` was replaced by a subclass or on the object, without these two.
    """
    if not hasattr(encoder, "resize") or not hasattr(encoder, "normalise"):
        return None
    for members in (vars(encoder), *(vars(kind) for kind in type(encoder).__mro__)):
        if "resize" in members or "normalise" in members:
            return cast("SplitPixels", encoder)
        if "preprocess" in members:
            return None
    return cast("SplitPixels", encoder)


class Encoder(Protocol):
    """Encode images and texts to unit vectors of one space, and images to vision tokens.

    An encoder is also a torch module; its weights are saved with the EDJE model.

    An encoder may have two more members, `resize` and `normalise` of `SplitPixels`. Then decoder
    processes resize the images, and the rest of `preprocess` happens on the encoder's device.
    """

    @property
    def name(self) -> str:
        """Return the encoder's name in contracts."""

    @property
    def revision(self) -> str:
        """Return the hash of the weights."""

    @property
    def preprocessing(self) -> str:
        """Return the hash of the preprocessing settings."""

    @property
    def embedding_dim(self) -> int:
        """Return `d`, the width of the embeddings."""

    @property
    def hidden_size(self) -> int:
        """Return `d_v`, the width of a vision token."""

    @property
    def num_patches(self) -> int:
        """Return `n`, the number of vision tokens of an image."""

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Return rows and columns of the vision tokens' grid, in row order: `h * w` is `n`."""

    @property
    def num_heads(self) -> int:
        """Return the number of attention heads of the vision tower."""

    @property
    def layer_norm_eps(self) -> float:
        """Return the epsilon of the vision tower's layer norms."""

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Preprocess images to `(B, 3, H, W)` float32 on the CPU; thread-safe."""

    def seen_area(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the area of an image of this size that the patch grid covers.

        Left, top, right and bottom as shares of the image's width and height: `(0, 0, 1, 1)` is the
        whole image. The area of a cropped image lies inside it; that of a padded image extends
        beyond it.
        """

    def encode_pixels(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pixels: embeddings `(B, d)`, unit length, and vision tokens `(B, n, d_v)`."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Encode texts that are already cleaned: `(B, d)`, unit length."""

    def save(self, folder: Path) -> None:
        """Save everything but the weights: settings, image processor, tokenizer."""
