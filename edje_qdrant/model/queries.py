"""Queries: images and texts in every accepted form, checked and encoded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.images import error_reason, image_name, open_upright
from edje_qdrant.model.edje import EDJEModel
from edje_qdrant.types import ImageEncoding

__all__ = [
    "ImageQuery",
    "encode_all",
    "encode_query",
    "read_pixels",
]

_TEXTS = 256

#: An image: a Pillow image, a path, or the encoding of one image.
ImageQuery: TypeAlias = "Image.Image | str | Path | ImageEncoding"


def encode_query(model: EDJEModel, image: ImageQuery) -> ImageEncoding:
    """Encode one image: one row.

    Args:
        model: Encodes the image; an encoding that is passed must come from this model.
        image: The image. Files and Pillow images are rotated by their EXIF orientation.

    Raises:
        ConfigError: It is not an image, or not an encoding of exactly one image by this model.
        ImageReadError: It cannot be read.
    """
    if isinstance(image, ImageEncoding):
        shapes = (image.embeddings.shape, image.tokens.shape)
        c = model.config
        expected = ((1, c.embedding_dim), (1, c.num_tokens, c.token_dim))
        if shapes != expected:
            raise ConfigError(
                f"an encoding of one image by this model has the shapes {expected[0]} and "
                f"{expected[1]}, not {shapes[0]} and {shapes[1]}; pass one row, as this model "
                "made it"
            )
        return image
    if not isinstance(image, Image.Image | str | Path):
        raise ConfigError(
            f"an image is a path, one that Pillow opened or an ImageEncoding, not a "
            f"{type(image).__name__}"
        )
    return model.encode_pixels(read_pixels(model, image))


def read_pixels(model: EDJEModel, image: Image.Image | str | Path) -> Tensor:
    """Read an image as `(1, 3, H, W)` float32; safe in worker threads.

    Raises:
        ImageReadError: The file cannot be read, or the image processor refuses the image.
    """
    upright = open_upright(image)
    try:
        return model.preprocess([upright])
    except Exception as error:  # image processors raise any type of error for odd shapes
        reason = error.reason if isinstance(error, ImageReadError) else error_reason(error)
        raise ImageReadError(image_name(image), reason) from error


def encode_all(model: EDJEModel, texts: Sequence[str]) -> NDArray[np.float32]:
    """Encode any number of texts for the first stage in batches: `(n, d)`, unit length.

    Raises:
        ConfigError: A text is empty after clean-up.
    """
    parts = [np.empty((0, model.config.embedding_dim), np.float32)]
    parts += [model.encode_texts(texts[i : i + _TEXTS]) for i in range(0, len(texts), _TEXTS)]
    return np.concatenate(parts)
