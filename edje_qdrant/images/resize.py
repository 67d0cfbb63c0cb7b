"""Resizing of RGB images to a model's size, as SigLIP and open_clip do it.

Free of torch: decoder processes run it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from edje_qdrant.errors import ImageReadError

__all__ = ["OpenClipResize", "Resize", "SiglipResize"]

#: Makes the pixels `(H, W, 3)` uint8 of an upright RGB image. It is sent to decoder processes, so
#: it must be picklable, and should not need torch.
Resize: TypeAlias = Callable[[Image.Image], NDArray[np.uint8]]

# Resizing a 1 x 50000 image to a height of 224 pixels would take 8 GB before the crop.
_LONGEST = 500


@dataclass(frozen=True, slots=True)
class SiglipResize:
    """Resize and crop as SigLIP's image processor does.

    Attributes:
        size: Width and height, or None to keep the image's.
        shortest_edge: Length of the shorter side, if proportions are kept.
        resample: Number of one of Pillow's filters.
        crop: Width and height cropped from the centre, or None.
    """

    size: tuple[int, int] | None = None
    shortest_edge: int | None = None
    resample: int = 3
    crop: tuple[int, int] | None = None

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return the pixels of an RGB image, `(H, W, 3)`."""
        size = self.size
        if self.shortest_edge is not None:
            shortest = min(image.size)
            width, height = (int(self.shortest_edge * side / shortest) for side in image.size)
            size = (width, height)
        if size is not None:
            image = image.resize(size, self.resample)
        if self.crop is not None:
            width, height = self.crop
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        return np.asarray(image)


@dataclass(frozen=True, slots=True)
class OpenClipResize:
    """Resize, crop and pad with open_clip's arithmetic and rounding.

    Attributes:
        size: Height and width.
        interpolation: Number of one of Pillow's filters.
        mode: `shortest` fits the shorter side and crops the centre, `longest` fits the longer side
            and pads, `squash` ignores the aspect ratio.
        fill_color: Colour of `longest`'s padding.
    """

    size: tuple[int, int]
    interpolation: int
    mode: str
    fill_color: int = 0

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return the pixels of an RGB image, `(H, W, 3)`.

        Raises:
            ImageReadError: Its sides differ so much that resizing it would fill the memory.
        """
        return np.asarray(self._resized(image))

    def _resized(self, rgb: Image.Image) -> Image.Image:
        (width, height), (high, wide) = rgb.size, self.size
        if self.mode == "squash":
            return self._scaled(rgb, wide, high)
        if max(width, height) > _LONGEST * min(width, height):
            raise ImageReadError(
                str(getattr(rgb, "filename", "") or rgb),
                f"{width} x {height} pixels are more than {_LONGEST} times as long as wide",
            )
        size = self.scaled_size(width, height)
        if self.mode == "longest":
            return self._middle(self._padded(self._scaled(rgb, *size)))
        if high == wide:
            return self._middle(self._scaled(rgb, *size))
        # For a size that is not square open_clip always resizes bicubically.
        return self._middle(rgb.resize(size, Image.Resampling.BICUBIC))

    def scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height that an image is resized to, before crop or padding."""
        high, wide = self.size
        if self.mode == "squash":
            return wide, high
        if self.mode == "longest":
            ratio = max(height / high, width / wide)
            return max(1, round(width / ratio)), max(1, round(height / ratio))
        if high == wide:
            short = min(width, height)
            return int(high * width / short), int(high * height / short)
        ratio = min(height / high, width / wide)
        return round(width / ratio), round(height / ratio)

    def _scaled(self, image: Image.Image, width: int, height: int) -> Image.Image:
        if image.size == (width, height):
            return image
        return image.resize((width, height), self.interpolation)

    def _padded(self, image: Image.Image) -> Image.Image:
        (width, height), (high, wide) = image.size, self.size
        across, down = max(wide - width, 0), max(high - height, 0)
        border = (across // 2, down // 2, (across + 1) // 2, (down + 1) // 2)
        return ImageOps.expand(image, border, fill=(self.fill_color,) * 3)

    def _middle(self, image: Image.Image) -> Image.Image:
        (width, height), (high, wide) = image.size, self.size
        left, top = round((width - wide) / 2), round((height - high) / 2)
        return image.crop((left, top, left + wide, top + high))
