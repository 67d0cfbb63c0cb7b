"""What the rest of the package asks of a stage-1 encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image
from torch import Tensor

__all__ = ["Encoder"]


class Encoder(Protocol):
    """Turn images and texts into unit vectors of one space, and images into vision tokens.

    An encoder is a torch module as well; its weights are saved with the model it belongs to.
    """

    @property
    def name(self) -> str:
        """Return the name a collection's contract knows this encoder by."""

    @property
    def revision(self) -> str:
        """Return the hash of the weights."""

    @property
    def preprocessing(self) -> str:
        """Return the hash of the image processor's settings."""

    @property
    def embedding_dim(self) -> int:
        """Return `d`, the width of the unit vectors."""

    @property
    def hidden_size(self) -> int:
        """Return `d_v`, the width of a vision token."""

    @property
    def num_patches(self) -> int:
        """Return `n`, the number of vision tokens of an image."""

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Return the rows and columns that the vision tokens make, row by row: `h * w` is `n`."""

    @property
    def num_heads(self) -> int:
        """Return the number of attention heads of the vision tower."""

    @property
    def layer_norm_eps(self) -> float:
        """Return the epsilon of the vision tower's layer norms."""

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Return `(B, 3, H, W)` float32 on the CPU; may be called from several threads at once."""

    def seen_area(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return which part of an image of this size the patch grid covers.

        Left, top, right and bottom as shares of the image's width and height: `(0, 0, 1, 1)` is
        all of it, a cropped image's lies inside that, and one that was filled up reaches beyond.
        """

    def encode_pixels(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings `(B, d)`, unit length, and vision tokens `(B, n, d_v)`."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return `(B, d)`, unit length, for texts that were cleaned up already."""

    def save(self, folder: Path) -> None:
        """Write everything but the weights: settings, image processor, tokenizer."""
