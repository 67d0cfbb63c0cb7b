"""What the frozen vision encoder does in training: from a source's rows to vision tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from edje_qdrant.data.pairs import PairSource
from edje_qdrant.encoders import Encoder
from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.images import words
from edje_qdrant.training.loop import autocast
from edje_qdrant.types import FailedImage

__all__ = ["check_counts", "encode_frozen", "read_pixels"]


def read_pixels(
    encoder: Encoder,
    source: PairSource,
    row: int,
    change: Callable[[Image.Image], Image.Image] | None = None,
) -> Tensor | FailedImage:
    """Return an image as `(1, 3, H, W)` float32, or why there is none; runs in any thread.

    Args:
        encoder: Whose `preprocess` is used.
        source: Where from.
        row: Which image.
        change: Applied to the upright RGB image before `preprocess`.
    """
    try:
        image = source.open(row)
        return encoder.preprocess([image if change is None else change(image)])
    except ImageReadError as error:
        return FailedImage(error.path, error.reason)
    except Exception as error:  # image processors refuse odd shapes in their own ways
        return FailedImage(source.key(row), words(error))


def encode_frozen(encoder: Encoder, pixels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return vision tokens `(b, n, d_v)` and embeddings `(b, d)` float32, in inference mode.

    Raises:
        ConfigError: The device has no memory for so many images at a time.
    """
    try:
        with torch.inference_mode(), autocast(device):
            embeddings, tokens = encoder.encode_pixels(pixels.to(device))
            return tokens, embeddings.float()
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the device has no memory to encode {len(pixels)} images at a time; "
            "lower the batch size and run again"
        ) from error


def check_counts(**counts: int) -> None:
    """Refuse settings that are no whole numbers from 1 on.

    Raises:
        ConfigError: One is not.
    """
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} is {value!r}; give a whole number, 1 or more")
