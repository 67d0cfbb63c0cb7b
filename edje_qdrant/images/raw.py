"""The embedded previews of cameras' RAW files."""

from __future__ import annotations

import contextlib
import io
from typing import Any, BinaryIO

from PIL import Image, ImageFile, TiffImagePlugin

from edje_qdrant.errors import ImageReadError, MissingExtraError

__all__ = ["RAW", "is_raw", "open_preview"]

#: The name of these files' format, whatever the maker.
RAW = "RAW"

# First bytes, or those after others, of formats that are no TIFF.
_BEGINS = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0")
_TIFF = (b"II*\0", b"MM\0*")
_CANON_2, _CANON_3 = (8, b"CR"), (4, b"ftypcrx ")
# TIFF tags: of a DNG, of further images, of the meaning of samples; sensors' colours.
_DNG_VERSION, _SUB_IFDS, _PHOTOMETRIC = 50706, 330, 262
_SENSOR = (32803, 34892)
_MOST_SUB_IFDS = 16
_ORIENTATION_TAG = 274
# LibRaw's turn that makes a photograph upright -> EXIF's.
_ORIENTATIONS = {0: 1, 3: 3, 5: 8, 6: 6}


def is_raw(prefix: bytes, file: str | BinaryIO) -> bool:
    """Return whether a file holds the samples of a camera's sensor; nothing is decoded.

    Args:
        prefix: Its first bytes.
        file: The file; its directories are read if it is a TIFF, as most of these formats are.
    """
    if prefix.startswith(_BEGINS) or any(
        prefix[at : at + len(mark)] == mark for at, mark in (_CANON_2, _CANON_3)
    ):
        return True
    if not prefix.startswith(_TIFF):
        return False
    with _opened(file) as opened, contextlib.suppress(Exception):  # damaged: Pillow says how
        opened.seek(0)
        first = TiffImagePlugin.ImageFileDirectory_v2(opened.read(8))
        opened.seek(first.next)
        first.load(opened)
        if _DNG_VERSION in first or first.get(_PHOTOMETRIC) in _SENSOR:
            return True
        places: Any = first.get(_SUB_IFDS, ())
        for place in (places if isinstance(places, tuple) else (places,))[:_MOST_SUB_IFDS]:
            opened.seek(0)
            below = TiffImagePlugin.ImageFileDirectory_v2(opened.read(8))
            opened.seek(place)
            below.load(opened)
            if below.get(_PHOTOMETRIC) in _SENSOR:
                return True
    return False


def open_preview(file: str | BinaryIO, name: str) -> ImageFile.ImageFile:
    """Open the largest preview in a RAW file, with the orientation of the RAW file; see `is_raw`.

    Returns:
        The image, not decoded; its format is `RAW`.

    Raises:
        ImageReadError: The extra `raw` is not installed, or the file is damaged, of an unknown
            camera, or without a preview.
    """
    try:
        import rawpy
    except ImportError as error:
        missing = MissingExtraError("rawpy", "raw")
        raise ImageReadError(name, f"a file in a camera's RAW format, but {missing}") from error
    try:
        with _opened(file) as opened:
            opened.seek(0)
            with rawpy.imread(opened) as raw:
                sizes = raw.sizes
                preview = raw.extract_thumb()
        image = _image_of(preview.format == rawpy.ThumbFormat.JPEG, preview.data)
    except rawpy.LibRawNoThumbnailError as error:
        reason = "a file in a camera's RAW format without a preview; convert it"
        raise ImageReadError(name, reason) from error
    except Exception as error:  # LibRaw's errors are bytes, decoders raise errors of any type
        reason = "a damaged file in a camera's RAW format, or of an unknown camera"
        raise ImageReadError(name, f"{reason} ({_message(error)})") from error
    orientation = _ORIENTATIONS.get(sizes.flip, 1)
    # A preview that is higher than wide, unlike the sensor, was turned by the camera.
    on_side = sizes.flip in (5, 6)
    turned = (image.width > image.height) != (sizes.raw_width > sizes.raw_height)
    image.getexif()[_ORIENTATION_TAG] = 1 if on_side and turned else orientation
    image.format = RAW
    return image


def _image_of(is_jpeg: bool, data: Any) -> ImageFile.ImageFile:
    if is_jpeg:
        return Image.open(io.BytesIO(data), formats=["JPEG"])
    file = io.BytesIO()
    Image.fromarray(data).save(file, "PPM")
    return Image.open(file, formats=["PPM"])


def _message(error: Exception) -> str:
    first = error.args[0] if error.args else ""
    return first.decode(errors="replace") if isinstance(first, bytes) else str(error)


def _opened(file: str | BinaryIO) -> contextlib.AbstractContextManager[BinaryIO]:
    return open(file, "rb") if isinstance(file, str) else contextlib.nullcontext(file)
