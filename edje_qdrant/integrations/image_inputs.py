"""What the cross-encoders accept as an image, and as a pair of a text and an image."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.images import error_reason, open_upright

__all__ = [
    "Fetch",
    "RankableImage",
    "TextImagePair",
    "image_from_base64",
    "load_image",
    "read_pair",
]

#: A file path, an address, a data URI, an image opened with Pillow, `(H, W, 3)` or `(3, H, W)`
#: uint8, or the id of an image in a collection; also as `{"image": ...}`.
RankableImage: TypeAlias = (
    "str | Path | Image.Image | NDArray[np.uint8] | Tensor | int | Mapping[str, Any]"
)

#: Returns the bytes of the file at an address that starts with `http:` or `https:`.
Fetch: TypeAlias = Callable[[str], bytes]

_IMAGES = (Path, Image.Image, np.ndarray, Tensor, int)


@dataclass(frozen=True, slots=True)
class TextImagePair:
    """Hold a text and an image, as the image was passed."""

    text: str
    image: Any


def read_pair(pair: Any) -> TextImagePair:
    """Find the text and the image of a pair.

    Args:
        pair: A text and an image, in a list or tuple; either may be a dict with one key, `text` or
            `image`. If both are texts, the second names the image. Or one dict with both keys.

    Raises:
        ConfigError: It is not a pair of a text and an image; says why.
    """
    if isinstance(pair, Mapping):
        if pair.keys() == {"text", "image"}:
            return TextImagePair(_text(pair["text"]), pair["image"])
        raise ConfigError(
            f"pairs holds a dict with {_keys(pair)}; give {{'text': ..., 'image': ...}}, or "
            "(text, image)"
        )
    if not isinstance(pair, tuple | list | np.ndarray) or len(pair) != 2:
        raise ConfigError(f"pairs holds a {type(pair).__name__}; give (text, image)")
    first, second = map(_part, pair)
    if first[0] == "image" and second[0] == "image":
        raise ConfigError("a pair holds two images; the model scores a text against an image")
    if first[0] == second[0] == "text":
        raise ConfigError("a pair holds two texts; the model scores a text against an image")
    if first[0] == "image" or second[0] == "text":
        first, second = second, first
    return TextImagePair(_text(first[1]), second[1])


def load_image(image: Any, fetch: Fetch | None) -> str | Path | Image.Image:
    """Return an image as a path or an image of Pillow's, read where it is neither.

    Args:
        image: The image of a pair, which is not an id.
        fetch: Fetches addresses; None to refuse them.

    Raises:
        ConfigError: It is not an image, or an address that may not be fetched.
        ImageReadError: It cannot be read.
    """
    if isinstance(image, np.ndarray | Tensor):
        return _from_array(image)
    if isinstance(image, str):
        if image.startswith("data:"):
            head, comma, content = image.partition(",")
            if not comma or not head.endswith(";base64"):
                raise ImageReadError("in a data URI", "it is not in base64")
            return image_from_base64(content, "in a data URI")
        if image.startswith(("http://", "https://")):
            if fetch is None:
                raise ConfigError(
                    f"{image} is an address, and addresses are not fetched; pass fetch=, a "
                    "function that returns the bytes of an address, or read the image yourself"
                )
            return open_upright(io.BytesIO(fetch(image)), image)
    if not isinstance(image, str | Path | Image.Image):
        raise ConfigError(
            f"an image must be a path, a Pillow image or an id, not a {type(image).__name__}"
        )
    return image


def image_from_base64(text: str, name: str) -> Image.Image:
    """Decode an image in base64.

    Args:
        text: The base64.
        name: Names the image in errors.

    Raises:
        ImageReadError: It is not base64, or not an image.
    """
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageReadError(name, error_reason(error)) from error
    return open_upright(io.BytesIO(content), name)


def _part(value: Any) -> tuple[str, Any]:
    """Return what a part of a pair is, `text`, `image`, or `` for a text that may name an image."""
    if isinstance(value, Mapping):
        if len(value) == 1 and value.keys() <= {"text", "image"}:
            return next(iter(value.items()))
        raise ConfigError(
            f"a pair holds a dict with {_keys(value)}; a text or an image of a pair is a dict with "
            "one key, 'text' or 'image', as the model reads either one"
        )
    if isinstance(value, str):
        return "image" if value.startswith("data:image/") else "", value
    if isinstance(value, _IMAGES) and not isinstance(value, bool):
        return "image", value
    return "", value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"a pair's text is a {type(value).__name__}; give a text")
    return value


def _keys(value: Mapping[str, Any]) -> str:
    return f"the keys {', '.join(map(repr, value))}" if value else "no key"


def _from_array(array: NDArray[Any] | Tensor) -> Image.Image:
    values = array.detach().cpu().numpy() if isinstance(array, Tensor) else array
    if values.ndim == 3 and values.shape[2] != 3 and values.shape[0] == 3:
        values = values.transpose(1, 2, 0)  # (H, W, 3)
    if values.ndim != 3 or values.shape[2] != 3 or values.dtype != np.uint8:
        raise ConfigError(
            f"an image in an array is (H, W, 3) or (3, H, W) uint8, not {tuple(array.shape)} "
            f"{values.dtype}; convert it, or pass a Pillow image"
        )
    return Image.fromarray(np.ascontiguousarray(values))
