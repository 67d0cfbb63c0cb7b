"""Convert frames of films with more brightness or more colours than sRGB has.

Source of the formulas: ITU-R BT.2100 (PQ, HLG), BT.2087 (colours), BT.2408 (reference white).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Curve", "Primaries", "deep_to_srgb"]

Curve: TypeAlias = Literal["pq", "hlg", "sdr"]
Primaries: TypeAlias = Literal["bt2020", "p3", "srgb"]

# White paper, in cd/m2 of PQ and as a part of HLG's 1000 cd/m2.
_WHITE = 203.0
_HLG_PEAK, _HLG_GAMMA = 1000.0, 0.2
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)
# Linear light up to here stays; what is brighter is compressed towards 1.
_KNEE = 0.6
_TO_SRGB = {
    "bt2020": [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    "p3": [[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]],
    "srgb": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
}
_BAND = 1 << 18  # pixels converted at a time
_STEPS = 1 << 14  # of linear light


def deep_to_srgb(
    samples: NDArray[np.uint16], curve: Curve, primaries: Primaries
) -> NDArray[np.uint8]:
    """Return an image in sRGB; light beyond white paper is compressed, and not cut.

    Args:
        samples: `(H, W, 3)`, 65535 is the largest value of the curve.
        curve: What the samples mean.
        primaries: Their colours.

    Returns:
        `(H, W, 3)`.
    """
    out = np.empty(samples.shape, np.uint8)
    rows = max(1, _BAND // max(1, samples.shape[1]))
    light, matrix = _light(curve), np.array(_TO_SRGB[primaries], np.float32).T
    for top in range(0, len(samples), rows):
        linear = light[samples[top : top + rows]]  # (h, W, 3)
        if curve == "hlg":  # the picture for a screen of 1000 cd/m2
            luminance = np.maximum(linear @ _LUMINANCE, 1e-6)
            linear *= (luminance**_HLG_GAMMA * _HLG_PEAK / _WHITE)[..., None]
        linear = np.maximum(linear @ matrix, 0)
        if curve != "sdr":
            bright = linear > _KNEE
            over = (linear[bright] - _KNEE) / (1 - _KNEE)
            linear[bright] = 1 - (1 - _KNEE) * np.exp(-over)
        steps = np.rint(np.minimum(linear, 1) ** 0.5 * (_STEPS - 1)).astype(np.intp)
        out[top : top + rows] = _encoded()[steps]
    return out


@lru_cache(maxsize=3)
def _light(curve: Curve) -> NDArray[np.float32]:
    """Return linear light of each of 65536 samples; 1 is white paper, but for HLG the camera's."""
    value = np.arange(65536) / 65535
    if curve == "pq":
        power = value ** (1 / 78.84375)
        light = np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
        light = 10_000 / _WHITE * light ** (1 / 0.1593017578125)
    elif curve == "hlg":
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(value <= 0.5, value**2 / 3, (np.exp((value - c) / a) + b) / 12)
    else:
        light = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


@lru_cache(maxsize=1)
def _encoded() -> NDArray[np.uint8]:
    """Return sRGB's levels of the squares of evenly spaced numbers from 0 to 1."""
    linear = np.linspace(0, 1, _STEPS) ** 2
    level = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    levels: NDArray[np.uint8] = np.rint(255 * level).astype(np.uint8)
    return levels
