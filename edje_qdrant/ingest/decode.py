"""Identify and decode one image: the first steps of an ingest."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import error_reason, image_bytes_id, image_file_id, open_upright
from edje_qdrant.ingest.sources import ListedImage
from edje_qdrant.types import FailedImage, Payload

if TYPE_CHECKING:
    from torch import Tensor

    from edje_qdrant.model import EDJEModel

__all__ = ["DecodedImage", "KnownImage", "decode_image", "identify_image"]


@dataclass(frozen=True, slots=True)
class KnownImage:
    """Hold an image that was identified, but not decoded.

    Attributes:
        image_id: UUID string, derived from the file's bytes.
        listed: Its path and the user's fields.
    """

    image_id: str
    listed: ListedImage


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Hold an image ready to be encoded.

    Attributes:
        image_id: UUID string, derived from the file's bytes.
        payload: Stored with the image: the user's fields, its path and its upright size.
        pixels: `(1, 3, H, W)` float32.
    """

    image_id: str
    payload: Payload
    pixels: Tensor


def identify_image(item: ListedImage | FailedImage) -> KnownImage | FailedImage:
    """Read an image's file and derive its id; pass earlier failures through."""
    if isinstance(item, FailedImage):
        return item
    try:
        if item.content is None:
            image_id = image_file_id(item.path)
        else:
            image_id = image_bytes_id(item.content, item.path)
    except ImageReadError as error:
        return FailedImage(item.path, error.reason)
    try:
        json.dumps([item.path, item.fields], allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        return FailedImage(item.path, f"its payload cannot be stored: {error_reason(error)}")
    return KnownImage(image_id, item)


def decode_image(
    image: KnownImage, model: EDJEModel, max_pixels: int
) -> DecodedImage | FailedImage:
    """Decode an image for a model; safe in worker threads.

    Args:
        image: The image.
        model: Its `preprocess` produces the pixels.
        max_pixels: Larger images are refused before they are decoded.
    """
    path, content = image.listed.path, image.listed.content
    try:
        file = path if content is None else io.BytesIO(content)
        upright = open_upright(file, path, max_pixels=max_pixels)
        payload = {
            **image.listed.fields,
            "path": path,
            "width": upright.width,
            "height": upright.height,
        }
        return DecodedImage(image.image_id, payload, model.preprocess([upright]))
    except ImageReadError as error:
        return FailedImage(path, error.reason)
    except Exception as error:  # image processors raise any type of error for odd shapes
        return FailedImage(path, error_reason(error))
