"""Qdrant's inference objects, `models.Document` and `models.Image`, as queries.

Qdrant's client embeds them by the model that they name. Here they only hold the query: the
collection's own model embeds it, as no other one's vectors can be compared with the collection's.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edje_qdrant.errors import ConfigError

if TYPE_CHECKING:
    from qdrant_client import models

__all__ = ["InferenceImage", "TextQuery", "image_of", "text_of"]

#: A text, or a `models.Document` that holds one.
TextQuery: TypeAlias = "str | models.Document"

#: Qdrant's `models.Image`: a path, base64 or a Pillow image, with the name of a model.
InferenceImage: TypeAlias = "models.Image"

_LONGEST_PATH = 4096


def text_of(query: Any, encoder: str) -> Any:
    """Return the text of a `models.Document`; anything else as it is.

    Args:
        query: A query.
        encoder: Name of the encoder of the collection.

    Raises:
        ConfigError: The document names another encoder, or has options.
    """
    if isinstance(query, str) or not _is_model(query, "Document"):
        return query
    _require_encoder(query, encoder)
    return query.text


def image_of(query: Any, encoder: str) -> Any:
    """Return the image of a `models.Image`: what it holds, base64 decoded; anything else as it is.

    Args:
        query: A query.
        encoder: Name of the encoder of the collection.

    Raises:
        ConfigError: The image names another encoder, has options, or is the address of one.
    """
    if not _is_model(query, "Image"):
        return query
    _require_encoder(query, encoder)
    image = query.image
    if not isinstance(image, str):
        return image
    if image.startswith(("http://", "https://")):
        raise ConfigError(
            f"a search fetches no images, and this one is at {image}; read it and give its path, "
            "its bytes in base64 or a Pillow image"
        )
    content = image
    if len(image) < _LONGEST_PATH and Path(image).is_file():
        return image
    if image.startswith("data:"):
        head, _, content = image.partition(",")
        if not head.endswith(";base64"):
            raise ConfigError("a data URI of an image must be in base64: data:image/png;base64,...")
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        return image  # a path of no file, as the reader will say


def _is_model(query: Any, name: str) -> bool:
    kind = type(query)
    return kind.__name__ == name and kind.__module__.startswith("qdrant_client.")


def _require_encoder(query: Any, encoder: str) -> None:
    if query.model != encoder:
        raise ConfigError(
            f"the models.{type(query).__name__} names the model {query.model!r}, and the "
            f"collection was written with {encoder!r}: name that one"
        )
    if query.options:
        raise ConfigError(
            f"the models.{type(query).__name__} has options, which the collection's model does not "
            f"take: {', '.join(sorted(query.options))}"
        )
