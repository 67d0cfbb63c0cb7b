"""Pixels of image files for a model: decoded in other processes, stacked for its device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edje_qdrant.encoders.protocol import split_pixels
from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import DecodedFile, DecoderPool, Part, error_reason
from edje_qdrant.model.edje import EDJEModel

__all__ = ["Pixels", "default_batch_size", "image_pixels", "read_file", "stack_pixels"]

#: One image: `(H, W, 3)` uint8 if the encoder has `resize`, else `(1, 3, H, W)` float32.
Pixels: TypeAlias = "NDArray[np.uint8] | Tensor"

_ON_CPU, _ON_DEVICE = 32, 64


def default_batch_size(device: torch.device) -> int:
    """Return how many images are encoded at a time on a device, if nothing else is asked for."""
    return _ON_CPU if device.type == "cpu" else _ON_DEVICE


def read_file(
    model: EDJEModel, decoders: DecoderPool, file: str | bytes | Part, name: str | None = None
) -> tuple[DecodedFile, Pixels]:
    """Read a file, and decode and resize its image for a model; safe in threads.

    Args:
        model: Its encoder decides how the image is resized.
        decoders: Processes that decode.
        file: A path, a file's bytes, or a frame of a film or a page of a document.
        name: Names the image in errors; by default its path.

    Returns:
        The id and the size of what was decoded, and its pixels.

    Raises:
        ImageReadError: The image cannot be read, or the image processor refuses it.
        ConfigError: The encoder's `resize` cannot be sent to a process.
        WorkerDiedError: Decoder processes cannot be started.
    """
    split = split_pixels(model.encoder)
    if split is not None:
        decoded = decoders.decode(file, name, split.resize)
        return decoded, decoded.array
    decoded = decoders.decode(file, name)
    shown = name or (file if isinstance(file, str) else "that was passed")
    return decoded, image_pixels(model, Image.fromarray(decoded.array), shown)


def image_pixels(model: EDJEModel, image: Image.Image, name: str) -> Pixels:
    """Return the pixels of an image that was read already, upright and in RGB.

    Raises:
        ImageReadError: The image processor refuses it.
    """
    split = split_pixels(model.encoder)
    try:
        return model.preprocess([image]) if split is None else split.resize(image)
    except Exception as error:  # image processors raise any type of error for odd shapes
        reason = error.reason if isinstance(error, ImageReadError) else error_reason(error)
        raise ImageReadError(name, reason) from error


def stack_pixels(pixels: Sequence[Pixels], device: torch.device) -> Tensor:
    """Return a batch for `EDJEModel.encode_pixels`, ready to be copied to a device.

    Args:
        pixels: All of one kind and size.
        device: Where they will be encoded.
    """
    if isinstance(pixels[0], Tensor):
        return torch.cat([torch.as_tensor(each) for each in pixels])
    batch = torch.empty(
        (len(pixels), *pixels[0].shape), dtype=torch.uint8, pin_memory=device.type == "cuda"
    )
    np.stack([np.asarray(each) for each in pixels], out=batch.numpy())
    return batch
