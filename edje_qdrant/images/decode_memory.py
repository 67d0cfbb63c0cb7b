"""An upper bound of the memory that decoding an image takes, known from its header."""

from __future__ import annotations

from PIL import Image, ImageFile, TiffImagePlugin

__all__ = ["decode_memory"]

# Bytes a pixel, measured: the decoded image with all copies that the conversion to RGB makes.
_MODES = {"1": 6, "L": 6, "P": 6, "RGB": 5}
_OTHER = 9  # CMYK, LAB, YCbCr
_ALPHA = 16
_DEEP = {"I": 16, "F": 16}
_DEEP_OTHER = 12  # grey of 16 bits
# Images with more pixels than this are converted in bands, which saves copies.
_WHOLE = 1 << 24
_ALPHA_IN_BANDS = 9
_SAVED_OF_DEEP = 3
_DEEP_COLOUR = 36  # colours of 16 bits
# Bytes a pixel that a decoder itself holds beside the image.
_DECODERS = {"WEBP": 14, "AVIF": 8, "HEIF": 12, "RAW": 4, "JPEG2000": 20, "GIF": 4, "ICO": 8}
_PROGRESSIVE = 6  # the coefficients of a whole JPEG
_PROFILE = _TURNED = 4
_FIXED = 4 << 20

_ORIENTATION_TAG = 274


def decode_memory(image: ImageFile.ImageFile) -> int:
    """Return the bytes that decoding, turning and converting an image takes at most.

    Args:
        image: Opened, but not decoded.
    """
    large = image.width * image.height > _WHOLE
    if image.mode.startswith(("I", "F")):
        each = _DEEP.get(image.mode, _DEEP_OTHER) - _SAVED_OF_DEEP * large
    elif any(";16" in str(tile) for tile in image.tile[:1]):
        each = _DEEP_COLOUR
    elif "transparency" in image.info or image.mode.lower() in ("la", "pa", "rgba"):
        each = _ALPHA_IN_BANDS if large else _ALPHA
    else:
        each = _MODES.get(image.mode, _OTHER)
    each += _DECODERS.get(image.format or "", 0)
    if image.info.get("progressive"):
        each += _PROGRESSIVE
    if "icc_profile" in image.info:
        each += _PROFILE
    if _is_turned(image):
        each += _TURNED
    return image.width * image.height * each + _FIXED


def _is_turned(image: Image.Image) -> bool:
    try:
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            return bool(image.tag_v2.get(_ORIENTATION_TAG, 1) != 1)
        if "exif" not in image.info:  # `getexif` would decode a PNG
            return False
        return bool(image.getexif().get(_ORIENTATION_TAG, 1) != 1)
    except Exception:  # damaged EXIF data, which are ignored later as well
        return False
