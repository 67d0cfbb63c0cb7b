"""open_clip's preprocessing of images, with Pillow and without torchvision."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edje_qdrant.encoders.pixel_values import look_up
from edje_qdrant.errors import ConfigError
from edje_qdrant.images import to_rgb
from edje_qdrant.images.resize import OpenClipResize

__all__ = ["PixelSettings"]

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
        resized = [self.resize(to_rgb(image)) for image in images]
        return self.normalise(torch.from_numpy(np.stack(resized)))

    @property
    def resize(self) -> OpenClipResize:
        """Return how an RGB image is resized, cropped and padded."""
        interpolation = _FILTERS[self.interpolation]
        return OpenClipResize(self.size, interpolation, self.resize_mode, self.fill_color)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return the input values of resized images, `(B, 3, H, W)` float32.

        Args:
            pixels: `(B, H, W, 3)` uint8.
        """
        values = torch.arange(256, dtype=torch.uint8).float() / 255
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return look_up(pixels, ((values - mean.view(3, 1)) / std.view(3, 1)).numpy())

    def seen_area(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the area of an image of this size that is seen; see `Encoder.seen_area`."""
        (across, down), (high, wide) = self.resize.scaled_size(width, height), self.size
        left, top = round((across - wide) / 2), round((down - high) / 2)
        if self.resize_mode == "longest":  # of an odd padding, the smaller half comes first
            left, top = -((wide - across) // 2), -((high - down) // 2)
        return left / across, top / down, (left + wide) / across, (top + high) / down


def _pair(size: Sequence[int]) -> tuple[int, int]:
    high, wide = size
    return int(high), int(wide)


def _three(values: float | Sequence[float]) -> tuple[float, float, float]:
    if isinstance(values, (int, float)):
        values = (values,) * 3
    first, second, third = values
    return float(first), float(second), float(third)
