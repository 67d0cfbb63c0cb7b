"""Small images for pages and agents, and files of frames and pages."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal, TypeAlias

from PIL import Image

__all__ = ["Still", "Thumbnail", "ThumbnailFormat"]

ThumbnailFormat: TypeAlias = Literal["WEBP", "JPEG"]


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """Make a small image file of an image; decoder processes do it.

    Attributes:
        side: Longest side in pixels.
        format: WebP, which is smaller, or JPEG, which more programs read.
    """

    side: int
    format: ThumbnailFormat = "WEBP"

    def __call__(self, image: Image.Image) -> bytes:
        """Return the file's bytes; the image is changed."""
        image.thumbnail((self.side, self.side), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        if self.format == "WEBP":
            image.save(out, "WEBP", quality=85, method=2)
        else:
            image.convert("RGB").save(out, "JPEG", quality=85)
        return out.getvalue()


@dataclass(frozen=True, slots=True)
class Still:
    """Make a PNG file of an image in its full size; decoder processes do it."""

    def __call__(self, image: Image.Image) -> bytes:
        """Return the file's bytes."""
        out = io.BytesIO()
        image.save(out, "PNG", compress_level=1)
        return out.getvalue()
