"""Read images as a viewer shows them, within a size limit."""

from __future__ import annotations

import logging
import os
import stat
import warnings
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images.formats import open_listed
from edje_qdrant.images.rgb import to_rgb

__all__ = [
    "MAX_PIXELS",
    "error_reason",
    "ignore_decoder_warnings",
    "image_name",
    "open_upright",
    "require_file",
]

#: Pillow refuses larger images, so a higher limit has no effect.
MAX_PIXELS = 178_956_970

# EXIF orientation -> the operation that turns the image upright (CIPA DC-008, tag 274).
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

# Where Pillow looks for an orientation.
_WITH_ORIENTATION = ("exif", "raw profile type exif", "Raw profile type exif", "xmp",
                     "XML:com.adobe.xmp")  # fmt: skip


def open_upright(
    file: str | Path | BinaryIO | Image.Image,
    name: str | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Read an image as a viewer shows it: upright, 8-bit RGB in sRGB, on white; see `to_rgb`.

    Of an animation the first frame is read, of a file with several images the first, of an icon
    the largest.

    Every file that the package decodes is opened here or in `formats.open_listed`: only files in
    one of the listed formats are decoded.

    Args:
        file: A path, a file opened for reading bytes, or an image that Pillow opened.
        name: Names the image in errors; by default its path, where it has one.
        max_pixels: Larger images are refused before they are decoded; a limit above
            `MAX_PIXELS` has no effect.

    Raises:
        ImageReadError: The file is missing, not an image, in a format that is not read, damaged,
            or too large.
    """
    name = name or image_name(file)
    if isinstance(file, Path):
        file = str(file)
    try:
        if isinstance(file, str):
            require_file(file, name)
        if isinstance(file, Image.Image):
            return _upright(file, name, max_pixels)
        with open_listed(file, name) as image:
            rgb = _upright(image, name, max_pixels)
        rgb.info.pop("icc_profile", None)  # of sRGB or unusable; programs that save would keep it
        return rgb
    except ImageReadError as error:
        raise ImageReadError(name, error.reason) from error
    except Exception as error:  # decoders raise any type of error for damaged files
        raise ImageReadError(name, error_reason(error)) from error


def image_name(image: str | Path | BinaryIO | Image.Image) -> str:
    """Return how errors name an image: by its path, where it has one."""
    if isinstance(image, str | Path):
        return str(image)
    return str(getattr(image, "filename", "") or "that was passed")


def ignore_decoder_warnings() -> None:
    """Silence Pillow's warnings about images that it reads all the same.

    Its log goes where the program has set one up, and not to stderr.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    log = logging.getLogger("PIL")
    if not log.handlers:
        log.addHandler(logging.NullHandler())


def error_reason(error: Exception) -> str:
    """Return an error's message in one line, without the path, which is reported beside it."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(text.split()) or type(error).__name__


def require_file(path: str, name: str) -> None:
    """Check that a path names a regular file.

    Raises:
        ImageReadError: It names a folder, a pipe or a device.
        OSError: It names nothing, or may not be looked at.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe would block
        raise ImageReadError(name, "not a file")


def _upright(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    if image.width * image.height > max_pixels:
        size = f"{image.width} x {image.height} pixels"
        raise ImageReadError(name, f"{size}; no more than {max_pixels} are allowed")
    _skip_default_image(image)
    rgb = to_rgb(image)  # before the EXIF data are read: loading a TIFF applies its orientation
    if rgb is image and getattr(image, "is_animated", False):
        # An opened HEIF file of several images is decoded by every call, in the file's own size:
        # the copy can be resized in place.
        rgb = image.copy()
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # damaged EXIF data do not make the image unusable
        return rgb
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    if turn is None:
        return rgb
    turned = rgb.transpose(turn)
    for key in _WITH_ORIENTATION:  # copied by Pillow; the result would be turned a second time
        turned.info.pop(key, None)
    return turned


def _skip_default_image(image: Image.Image) -> None:
    """Go to the first frame of an animated PNG, which need not be its default image."""
    if image.info.get("default_image") and getattr(image, "tell", int)() == 0:
        try:
            image.seek(1)
        except (EOFError, SyntaxError, ValueError):  # viewers show the default image then
            image.seek(0)
