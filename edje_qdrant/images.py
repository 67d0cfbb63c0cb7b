"""Name images by content, and open them: upright, and never too large for memory."""

from __future__ import annotations

import hashlib
import os
import stat
import uuid
import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from edje_qdrant.errors import ImageReadError

__all__ = [
    "MAX_PIXELS",
    "content_id",
    "ignore_decoder_warnings",
    "image_file_id",
    "open_upright",
    "to_rgb",
    "words",
]

#: Pillow opens nothing larger, whatever limit is given here.
MAX_PIXELS = 178_956_970

# Ids must stay the same for ever, or a rerun would add every image again.
_NAMESPACE = uuid.UUID("6b1f4a52-93a6-5f0e-8d0c-2f5a7c1de4b9")
_READ_BYTES = 1 << 20

# EXIF orientation -> what brings the image upright (CIPA DC-008, tag 274).
_ORIENTATION_TAG = 274
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_upright(
    file: str | BinaryIO | Image.Image, name: str, *, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode an image and turn it as its EXIF data says; its mode stays as it is.

    Args:
        file: A path, a file opened for reading bytes, or an image that Pillow opened.
        name: What errors call it.
        max_pixels: Images with more are refused before they are decoded; more than
            `MAX_PIXELS` has no effect.

    Raises:
        ImageReadError: It is missing, no image, damaged, or too large.
    """
    try:
        # A pipe would be waited on for ever.
        if isinstance(file, str) and not stat.S_ISREG(os.stat(file).st_mode):
            raise ImageReadError(name, "not a file")
        if isinstance(file, Image.Image):
            return _upright(file, name, max_pixels)
        with Image.open(file) as image:
            return _upright(image, name, max_pixels)
    except ImageReadError:
        raise
    except UnidentifiedImageError as error:
        reason = "not an image, or of a kind that cannot be read here"
        raise ImageReadError(name, reason) from error
    except Exception as error:  # on damaged files decoders raise anything
        raise ImageReadError(name, words(error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image in RGB; transparency is dropped, 16 bits a channel become 8.

    Raises:
        ImageReadError: The image's data cannot be decoded.
    """
    try:
        if image.mode == "RGB":
            image.load()
            return image
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            # Pillow clips these at 255, which turns a 16-bit image white.
            values = np.asarray(image, dtype=np.float32)
            scale = 257.0 if values.size and values.max() > 255 else 1.0
            image = Image.fromarray(np.clip(values / scale, 0, 255).astype(np.uint8))
        elif "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageReadError(str(getattr(image, "filename", "") or image), str(error)) from error


def image_file_id(path: str) -> str:
    """Return the id an image has in every collection; it is made from its file's bytes alone.

    Raises:
        ImageReadError: The file cannot be read or is empty; whether it holds an image is not seen.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited on for ever
            raise ImageReadError(path, "not a file")
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
            if file.tell() == 0:
                raise ImageReadError(path, "the file is empty")
    except (OSError, ValueError) as error:
        raise ImageReadError(path, words(error)) from error
    return str(uuid.uuid5(_NAMESPACE, digest.hexdigest()))


def content_id(content: bytes, name: str) -> str:
    """Return `image_file_id` of a file whose bytes were read already.

    Args:
        content: The file's bytes.
        name: What errors call it.

    Raises:
        ImageReadError: There are none.
    """
    if not content:
        raise ImageReadError(name, "the file is empty")
    return str(uuid.uuid5(_NAMESPACE, hashlib.sha256(content).hexdigest()))


def ignore_decoder_warnings() -> None:
    """Hide what Pillow warns of and reads nevertheless; what it does not read raises."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def words(error: Exception) -> str:
    """Return an error's text in one line, without the path, which its readers see beside it."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(text.split()) or type(error).__name__


def _upright(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    if image.width * image.height > max_pixels:
        size = f"{image.width} x {image.height} pixels"
        raise ImageReadError(name, f"{size}, and no more than {max_pixels} are read")
    image.load()  # first, as loading a TIFF turns it
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # damaged EXIF data is no reason to lose an image
        return image
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)
