"""Name images by their content."""

from __future__ import annotations

import hashlib
import os
import uuid

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images.open import error_reason, require_file

__all__ = ["MAX_FILE_BYTES", "image_bytes_id", "image_file_id", "part_id", "read_image_file"]

#: Larger files are refused before they are read.
MAX_FILE_BYTES = 256 << 20

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


def read_image_file(path: str, max_bytes: int = MAX_FILE_BYTES, name: str | None = None) -> bytes:
    """Read a file once, so that what is named is what is decoded.

    Args:
        path: The file.
        max_bytes: Larger files are refused.
        name: Names the file in errors; by default its path.

    Raises:
        ImageReadError: The file cannot be read, or is too large.
    """
    name = name or path
    try:
        require_file(path, name)
        size = os.stat(path).st_size
        if size <= max_bytes:
            with open(path, "rb") as file:
                content = file.read(max_bytes + 1)  # it may have grown
            if len(content) <= max_bytes:
                return content
            size = len(content)
    except (OSError, ValueError) as error:
        raise ImageReadError(name, error_reason(error)) from error
    raise ImageReadError(name, f"a file of {size} bytes; no more than {max_bytes} are read")


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


def part_id(file_id: str, fragment: str) -> str:
    """Return the id of a frame of a film or a page of a document.

    It depends on the file's bytes and on the time or the page only: pixels differ between versions
    of the libraries that decode them.

    Args:
        file_id: `image_file_id` of the whole file.
        fragment: Names the part, such as `t=12.5` or `page=3`.
    """
    return str(uuid.uuid5(_NAMESPACE, f"{file_id}#{fragment}"))
