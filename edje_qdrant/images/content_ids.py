"""Name images by their content."""

from __future__ import annotations

import hashlib
import uuid

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images.open import error_reason, require_file

__all__ = ["image_bytes_id", "image_file_id"]

# Never change this: ids are derived from it, and a rerun would add every image a second time.
_NAMESPACE = uuid.UUID("6b1f4a52-93a6-5f0e-8d0c-2f5a7c1de4b9")
_READ_BYTES = 1 << 20

_EMPTY = "the file is empty"


def image_file_id(path: str) -> str:
    """Return the id of an image file, derived from its bytes alone: the same in every collection.

    Raises:
        ImageReadError: The file cannot be read or is empty. Whether it holds an image is not
            checked.
    """
    try:
        require_file(path, path)
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
            if file.tell() == 0:
                raise ImageReadError(path, _EMPTY)
    except (OSError, ValueError) as error:
        raise ImageReadError(path, error_reason(error)) from error
    return str(uuid.uuid5(_NAMESPACE, digest.hexdigest()))


def image_bytes_id(content: bytes, name: str) -> str:
    """Return what `image_file_id` returns for a file with these bytes.

    Args:
        content: The file's bytes.
        name: Names the image in errors.

    Raises:
        ImageReadError: There are no bytes.
    """
    if not content:
        raise ImageReadError(name, _EMPTY)
    return str(uuid.uuid5(_NAMESPACE, hashlib.sha256(content).hexdigest()))
