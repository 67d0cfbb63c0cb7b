"""Convert the colours that a file describes to sRGB."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

__all__ = ["to_srgb"]

# Profiles kept ready: cameras and programs use few. Larger ones would hold too much memory.
_KEPT = 32
_KEPT_BYTES = 1 << 20
# Profiles of sRGB differ by this much at most from each other, in 8-bit levels.
_SAME = 2
_GAMMA = 2.2  # sRGB's, about; PNG states the reciprocal
_SAME_GAMMA = 0.05
_SPACES = {"RGB": "RGB", "CMYK": "CMYK", "L": "GRAY", "LAB": "Lab"}


def to_srgb(image: Image.Image, info: Mapping[Any, Any]) -> Image.Image:
    """Return an image as 8-bit RGB in sRGB; thread-safe.

    Args:
        image: An image without transparency, decoded, of at most 8 bits a channel.
        info: Pillow's `info` of the file: the ICC profile, or else the gamma of a PNG. Without
            them, with a damaged profile and with one of another colour space, colours count as
            sRGB, and as plain CMYK and grey.

    Returns:
        The image itself if it is RGB in sRGB.
    """
    if image.mode not in _SPACES:
        image = image.convert("RGB")
    profile = info.get("icc_profile") or b""
    transform = _transform_of(profile, image.mode) if profile or image.mode == "LAB" else None
    if transform is None and profile and image.mode == "L":  # of an image that once had colours
        image = image.convert("RGB")
        transform = _transform_of(profile, "RGB")
    if transform is not None:
        converted = ImageCms.applyTransform(image, transform) or image
        converted.info.pop("icc_profile", None)  # that of sRGB, which goes without saying
        return converted
    if image.mode != "RGB":
        image = image.convert("RGB")
    gamma = info.get("gamma")
    if profile or "srgb" in info or not isinstance(gamma, float) or not 0.1 < gamma < 10:
        return image
    return image if abs(gamma * _GAMMA - 1) <= _SAME_GAMMA else image.point(_levels(gamma) * 3)


def _transform_of(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    kept = len(profile) <= _KEPT_BYTES
    return _transform(profile, mode) if kept else _transform.__wrapped__(profile, mode)


@lru_cache(maxsize=_KEPT)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return what converts images with a profile to sRGB; None if they need no conversion."""
    try:
        source = ImageCms.ImageCmsProfile(
            io.BytesIO(profile) if profile else ImageCms.createProfile("LAB")
        )
        if source.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        transform = ImageCms.ImageCmsTransform(
            source,
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,  # as browsers
            flags=ImageCms.Flags.NOCACHE,  # threads share it
        )
        return None if _changes_nothing(transform, mode) else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Return whether a transform leaves colours as they are, as those of sRGB do."""
    if mode not in ("RGB", "L"):
        return False
    if mode == "L":
        before = np.arange(256, dtype=np.uint8)[None]  # (1, 256)
    else:
        levels = np.linspace(0, 255, 9).astype(np.uint8)
        before = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)  # (1, 729, 3)
    image = Image.fromarray(before)
    after = np.asarray(ImageCms.applyTransform(image, transform), dtype=np.int16)
    change = after - np.asarray(image.convert("RGB"), dtype=np.int16)
    return bool(np.abs(change).max() <= _SAME)


@lru_cache(maxsize=_KEPT)
def _levels(gamma: float) -> list[int]:
    """Return sRGB's level of each of the 256 levels of a PNG with a gamma."""
    linear = (np.arange(256) / 255) ** (1 / gamma)
    encoded = np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055
    )
    return [int(level) for level in np.rint(255 * encoded)]
