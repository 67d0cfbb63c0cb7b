"""open_clip's preprocessing of images, with Pillow and without torchvision."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.images import to_rgb

__all__ = ["PixelSettings"]

# Resizing a 1 x 50000 image to a height of 224 pixels would take 8 GB before the crop.
_LONGEST = 500
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True, slots=True)
class PixelSettings:
    """Settings that determine an image's pixels.

    Attributes:
        size: Height and width.
        mean: Subtracted from the three channels.
        std: Divides the three channels.
        interpolation: Filter for resizing.
        resize_mode: `shortest` fits the shorter side and crops the centre, `longest` fits the
            longer side and pads, `squash` ignores the aspect ratio.
        fill_color: Colour of `longest`'s padding.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill_color: int = 0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PixelSettings:
        """Read open_clip's `preprocess_cfg`.

        Raises:
            ConfigError: A setting is missing or unknown.
        """
        try:
            size = data["size"]
            found = cls(
                size=(int(size), int(size)) if isinstance(size, int) else _pair(size),
                mean=_three(data["mean"]),
                std=_three(data["std"]),
                # open_clip treats `random`, a training setting, as bicubic.
                interpolation="bilinear" if data.get("interpolation") == "bilinear" else "bicubic",
                resize_mode=data.get("resize_mode") or "shortest",
                fill_color=int(data.get("fill_color") or 0),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not open_clip's settings: {dict(data)} ({error!r})") from error
        if found.resize_mode not in ("shortest", "longest", "squash"):
            raise ConfigError(
                f"resize_mode is {found.resize_mode!r}; open_clip's are shortest, longest, squash"
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return open_clip's `preprocess_cfg`, as JSON."""
        return {"mode": "RGB", **asdict(self)}

    def hash(self) -> str:
        """Return a hash of all settings: 32 hexadecimal digits."""
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Return `(B, 3, H, W)` float32.

        Raises:
            ImageReadError: An image cannot be decoded, or its sides differ so much that resizing
                it would fill the memory.
        """
        if not images:
            return torch.empty((0, 3, *self.size))
        values = np.stack([np.asarray(self._resize(image)) for image in images])  # (B, H, W, 3)
        pixels = torch.from_numpy(values).permute(0, 3, 1, 2).float() / 255
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return ((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)).contiguous()

    def seen_area(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the area of an image of this size that is seen; see `Encoder.seen_area`."""
        (across, down), (high, wide) = self._scaled_size(width, height), self.size
        left, top = round((across - wide) / 2), round((down - high) / 2)
        if self.resize_mode == "longest":  # of an odd padding, the smaller half comes first
            left, top = -((wide - across) // 2), -((high - down) // 2)
        return left / across, top / down, (left + wide) / across, (top + high) / down

    def _resize(self, image: Image.Image) -> Image.Image:
        """Return the image in RGB at `size`, with open_clip's arithmetic and rounding."""
        rgb = to_rgb(image)
        (width, height), (high, wide) = rgb.size, self.size
        if self.resize_mode == "squash":
            return self._scaled(rgb, wide, high)
        if max(width, height) > _LONGEST * min(width, height):
            raise ImageReadError(
                str(getattr(image, "filename", "") or image),
                f"{width} x {height} pixels are more than {_LONGEST} times as long as wide",
            )
        size = self._scaled_size(width, height)
        if self.resize_mode == "longest":
            return self._middle(self._padded(self._scaled(rgb, *size)))
        if high == wide:
            return self._middle(self._scaled(rgb, *size))
        # For a size that is not square open_clip always resizes bicubically.
        return self._middle(rgb.resize(size, Image.Resampling.BICUBIC))

    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height that an image is resized to, before crop or padding."""
        high, wide = self.size
        if self.resize_mode == "squash":
            return wide, high
        if self.resize_mode == "longest":
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
        return image.resize((width, height), _FILTERS[self.interpolation])

    def _padded(self, image: Image.Image) -> Image.Image:
        (width, height), (high, wide) = image.size, self.size
        across, down = max(wide - width, 0), max(high - height, 0)
        border = (across // 2, down // 2, (across + 1) // 2, (down + 1) // 2)
        return ImageOps.expand(image, border, fill=(self.fill_color,) * 3)

    def _middle(self, image: Image.Image) -> Image.Image:
        (width, height), (high, wide) = image.size, self.size
        left, top = round((width - wide) / 2), round((height - high) / 2)
        return image.crop((left, top, left + wide, top + high))


def _pair(size: Sequence[int]) -> tuple[int, int]:
    high, wide = size
    return int(high), int(wide)


def _three(values: float | Sequence[float]) -> tuple[float, float, float]:
    if isinstance(values, (int, float)):
        values = (values,) * 3
    first, second, third = values
    return float(first), float(second), float(third)
