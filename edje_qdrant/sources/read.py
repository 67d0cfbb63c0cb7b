"""Reading of one stored image by its path: for explanations, thumbnails and repairs."""

from __future__ import annotations

from edje_qdrant.images import MAX_FILE_BYTES, image_bytes_id, read_image_file

__all__ = ["read_image", "stored_id"]


def read_image(path: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Return the bytes of the image file that a stored `path` names.

    Args:
        path: As an ingest stored it.
        max_bytes: Larger files are refused.

    Raises:
        ImageReadError: The image cannot be read, or is too large.
    """
    return read_image_file(path, max_bytes)


def stored_id(path: str, content: bytes) -> str:
    """Return the id that an ingest gives to an image that was read from `path`.

    Args:
        path: As an ingest stored it.
        content: What `read_image` returned for it.

    Raises:
        ImageReadError: There are no bytes.
    """
    return image_bytes_id(content, path)
