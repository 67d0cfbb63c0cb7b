"""Thumbnails for pages."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

__all__ = ["Thumbnail"]


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """Make a WebP file of an image; decoder processes do it.

    Attributes:
        side: Longest side in pixels.
    """

    side: int

    def __call__(self, image: Image.Image) -> bytes:
        """Return the file's bytes; the image is changed."""
        image.thumbnail((self.side, self.side), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        image.save(out, "WEBP", quality=85, method=2)
        return out.getvalue()
