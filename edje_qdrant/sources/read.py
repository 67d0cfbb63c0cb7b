"""Reading of one stored image by its path: for explanations, thumbnails and repairs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import (
    MAX_FILE_BYTES,
    DecoderPool,
    image_bytes_id,
    image_file_id,
    part_of,
    read_image_file,
)
from edje_qdrant.images.thumbnail import Still
from edje_qdrant.sources.datasets import opened_rows
from edje_qdrant.sources.parquet import opened_cells
from edje_qdrant.sources.parts import stored_part_id
from edje_qdrant.sources.remote import fetch
from edje_qdrant.sources.table import read_row
from edje_qdrant.sources.tar import read_member
from edje_qdrant.sources.uris import is_in_memory, is_uri_of_image, split_part

__all__ = ["OTHER_PATHS", "id_now", "other_paths", "read_image", "stored_id"]

#: The field of a payload with the other paths at which ingests found the image's content.
OTHER_PATHS = "other_paths"


def other_paths(payload: Mapping[str, Any]) -> list[str]:
    """Return the other paths at which ingests found an image's content; usually none."""
    paths = payload.get(OTHER_PATHS)
    return [path for path in paths if isinstance(path, str)] if isinstance(paths, list) else []


def read_image(path: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Return the bytes of the image file that a stored `path` names; a PNG of a frame or a page.

    Args:
        path: As an ingest stored it: a file, a frame of a film (`/films/a.mp4#t=12`) or a page of
            a document (`/papers/a.pdf#page=3`).
        max_bytes: Larger files are refused.

    Raises:
        ImageReadError: The image cannot be read, or is too large.
    """
    if is_in_memory(path):
        raise ImageReadError(
            path,
            "it was passed by a program as bytes, as a Pillow image or in a data set, and is in no "
            "file",
        )
    part_of_container = split_part(path)
    if part_of_container is not None and not os.path.exists(path):
        container, names = part_of_container
        if "member" in names:
            return read_member(container, names["member"], max_bytes)
        opened = opened_rows if os.path.isdir(container) else opened_cells
        return read_row(container, names["row"], names.get("column", ""), opened, max_bytes)
    if is_uri_of_image(path):
        return fetch(path, max_bytes=max_bytes)[0]
    part = part_of(path)
    if part is None:
        return read_image_file(path, max_bytes)
    with DecoderPool(1) as decoders:
        return decoders.decode(part, path, Still()).data


def stored_id(path: str, content: bytes) -> str:
    """Return the id that an ingest gives to an image that was read from `path`.

    Args:
        path: As an ingest stored it.
        content: What `read_image` returned for it.

    Raises:
        ImageReadError: There are no bytes, or the film or the document cannot be read.
    """
    part = part_of(path)
    return image_bytes_id(content, path) if part is None else stored_part_id(part)


def id_now(path: str) -> str:
    """Return the id of the image that a stored `path` names now; nothing is decoded.

    Args:
        path: As an ingest stored it.

    Raises:
        ImageReadError: The file cannot be read, or is empty.
    """
    part = part_of(path)
    return image_file_id(path) if part is None else stored_part_id(part)
