"""From the pixels of resized images to an encoder's input, on any device with the same values."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["look_up"]


def look_up(pixels: Tensor, levels: NDArray[np.float32]) -> Tensor:
    """Replace each 8-bit value by the input value that belongs to it.

    A table has the same entries everywhere; arithmetic on a GPU rounds otherwise than on a CPU.

    Args:
        pixels: `(B, H, W, 3)` uint8.
        levels: The input value of each of a channel's 256 values, `(3, 256)`.

    Returns:
        `(B, 3, H, W)` float32, on the device of `pixels`.
    """
    batch, height, width, _ = pixels.shape
    if pixels.device.type == "cpu":
        values = pixels.numpy()
        planes = np.empty((batch, 3, height, width), dtype=np.float32)
        for row in range(batch):
            for channel in range(3):
                # uint8 cannot be out of range; "clip" writes into `out` without a buffer
                np.take(
                    levels[channel], values[row, ..., channel], out=planes[row, channel],
                    mode="clip",
                )  # fmt: skip
        return torch.from_numpy(planes)
    table = torch.from_numpy(levels).to(pixels.device)  # (3, 256)
    return torch.stack([table[c][pixels[..., c].int()] for c in range(3)], dim=1)
