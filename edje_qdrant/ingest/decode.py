"""The first steps of an ingest, one image at a time: name its content, then decode it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import error_reason, image_bytes_id, image_file_id, open_upright
from edje_qdrant.ingest.sources import ListedImage
from edje_qdrant.types import FailedImage, Payload

if TYPE_CHECKING:
    from torch import Tensor
    from tqdm import tqdm

    from edje_qdrant.model import EDJEModel

__all__ = [
    "DecodedImage", "KnownImage", "decode_image", "identify_image", "readable_ones",
]  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KnownImage:
    """Hold an image whose content was read, but not decoded.

    Attributes:
        image_id: UUID string, made from the file's bytes.
        listed: Where it lies, and what the user says about it.
    """

    image_id: str
    listed: ListedImage


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Hold an image ready to be encoded.

    Attributes:
        image_id: UUID string, made from the file's bytes.
        payload: What is stored with it: the user's fields, its path and its upright size.
        pixels: `(1, 3, H, W)` float32.
    """

    image_id: str
    payload: Payload
    pixels: Tensor


def identify_image(item: ListedImage | FailedImage) -> KnownImage | FailedImage:
    """Read a file once and name its content; what failed before stays failed."""
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
    picture: KnownImage, model: EDJEModel, max_pixels: int
) -> DecodedImage | FailedImage:
    """Decode an image for a model; safe in worker threads.

    Args:
        picture: Which.
        model: Whose `preprocess` makes the pixels.
        max_pixels: Images with more are refused before they are decoded.
    """
    path, content = picture.listed.path, picture.listed.content
    try:
        file = path if content is None else io.BytesIO(content)
        upright = open_upright(file, path, max_pixels=max_pixels)
        payload = {
            **picture.listed.fields,
            "path": path,
            "width": upright.width,
            "height": upright.height,
        }
        return DecodedImage(picture.image_id, payload, model.preprocess([upright]))
    except ImageReadError as error:
        return FailedImage(path, error.reason)
    except Exception as error:  # image processors refuse odd shapes in their own ways
        return FailedImage(path, error_reason(error))


def readable_ones(
    items: Iterable[T | FailedImage], failed: list[FailedImage], bar: tqdm[Any]
) -> Iterator[T]:
    """Put failures aside, which counts as progress, and yield the rest."""
    for item in items:
        if isinstance(item, FailedImage):
            failed.append(item)
            bar.update()
        else:
            yield item
