"""SigLIP's image processing on Pillow and numpy: the same pixels as transformers' processor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edje_qdrant.encoders.pixel_values import look_up
from edje_qdrant.errors import CheckpointError
from edje_qdrant.images.resize import SiglipResize

__all__ = ["SiglipPixels"]

_SETTINGS_FILE = "preprocessor_config.json"
_NESTED_SETTINGS_FILE = "processor_config.json"  # newer; takes precedence if it has the settings
_TYPE = "SiglipImageProcessor"
_TYPES = (_TYPE, f"{_TYPE}Fast", f"{_TYPE}Pil", "SiglipFeatureExtractor")


@dataclass(frozen=True)
class SiglipPixels:
    """Settings of SigLIP's image processing, and the processing itself.

    Attributes have the names, defaults and meanings of `preprocessor_config.json`.

    Attributes:
        size: `{"height": h, "width": w}`, or `{"shortest_edge": n}` to keep proportions.
        resample: Number of one of Pillow's filters; 3 is bicubic.
        crop_size: `{"height": h, "width": w}`, cropped from the centre if `do_center_crop`.
        rescale_factor: Multiplied with values from 0 to 255.
        image_mean: One number or one per channel, subtracted if `do_normalize`.
        image_std: One number or one per channel, divided by if `do_normalize`.
    """

    size: Mapping[str, int] = field(default_factory=lambda: {"height": 224, "width": 224})
    do_resize: bool = True
    resample: int = 3
    do_center_crop: bool | None = None
    crop_size: Mapping[str, int] | None = None
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: float | Sequence[float] = (0.5, 0.5, 0.5)
    image_std: float | Sequence[float] = (0.5, 0.5, 0.5)

    @classmethod
    def from_folder(cls, folder: Path) -> SiglipPixels:
        """Read the settings that a model's folder holds.

        Raises:
            CheckpointError: The settings are missing, unreadable or of another image processor.
        """
        try:
            data, file = None, folder / _NESTED_SETTINGS_FILE
            if file.is_file():
                data = json.loads(file.read_text(encoding="utf-8")).get("image_processor")
            if data is None:
                file = folder / _SETTINGS_FILE
                data = json.loads(file.read_text(encoding="utf-8"))
            kind = data.get("image_processor_type") or data.get("feature_extractor_type") or _TYPE
            if kind in _TYPES:
                return cls.from_dict(data)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"cannot read SigLIP's image processing in {file} ({error!r}); "
                "copy or download the file again",
                path=str(file),
            ) from error
        raise CheckpointError(
            f"{file} has the settings of {kind}; only {_TYPE} is supported", path=str(file)
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SiglipPixels:
        """Return the settings in `data`; missing ones and `None` become defaults.

        Raises:
            KeyError, TypeError, ValueError: A setting has no meaning here.
        """
        chosen = {k: data[k] for k in cls.__dataclass_fields__ if data.get(k) is not None}
        if isinstance(chosen.get("size"), int):
            chosen["size"] = {"shortest_edge": chosen["size"]}
        if isinstance(chosen.get("crop_size"), int):
            chosen["crop_size"] = dict.fromkeys(("height", "width"), chosen["crop_size"])
        settings = cls(**chosen)
        settings.process([Image.new("RGB", (2, 2))])  # raises if a setting has no meaning
        return settings

    def as_dict(self) -> dict[str, Any]:
        """Return the settings without those that are `None`."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def hash(self) -> str:
        """Return 32 hexadecimal digits that change with every setting."""
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def save(self, folder: Path) -> None:
        """Write `preprocessor_config.json`, which transformers reads as well."""
        data = {**self.as_dict(), "do_convert_rgb": True, "image_processor_type": _TYPE}
        text = json.dumps(data, indent=2, sort_keys=True) + "\n"
        (folder / _SETTINGS_FILE).write_text(text, encoding="utf-8")

    def process(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the pixels of RGB images, `(B, 3, H, W)` float32 on the CPU."""
        return self.normalise(torch.from_numpy(np.stack([self.resize(image) for image in images])))

    @cached_property
    def resize(self) -> SiglipResize:
        """Return how an RGB image is resized and cropped."""
        size = shortest_edge = crop = None
        if self.do_resize:
            if set(self.size) == {"shortest_edge"}:
                shortest_edge = self.size["shortest_edge"]
            else:
                size = (self.size["width"], self.size["height"])
        if self.do_center_crop:
            if self.crop_size is None:
                raise ValueError("do_center_crop without crop_size")
            crop = (self.crop_size["width"], self.crop_size["height"])
        return SiglipResize(size, shortest_edge, self.resample, crop)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return the input values of resized images, `(B, 3, H, W)` float32.

        Args:
            pixels: `(B, H, W, 3)` uint8.
        """
        return look_up(pixels, self._levels)

    @cached_property
    def _levels(self) -> NDArray[np.float32]:
        """Return the pixel value of each of a channel's 256 values, `(3, 256)`.

        Rounded where transformers rounds: after the product, the difference and the quotient.
        """
        values = np.arange(256, dtype=np.float64)
        if self.do_rescale:
            values *= self.rescale_factor
        levels = np.tile(values.astype(np.float32), (3, 1))
        if self.do_normalize:
            mean, std = (
                np.broadcast_to(np.asarray(value, dtype=np.float32), 3)[:, None]
                for value in (self.image_mean, self.image_std)
            )
            levels = (levels - mean) / std
        return levels
