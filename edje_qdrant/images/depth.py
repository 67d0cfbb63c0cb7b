"""Reduce deep and float samples to 8 bits, by what the file says or by the range of its data.

`docs/images.md` states the rule.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.images.samples import Samples

__all__ = ["data_range", "sample_range", "to_8_bits"]

# Depths of sensors and file formats; the greatest sample is at least a quarter of white.
_INTEGER_BITS = (1, 2, 4, 6, 8, 10, 12, 14, 16)
_FLOAT_WHITES = (1.0, 255.0, 65535.0)
_FAR = 15 / 16  # of the range: values beyond it are outliers if hardly any other value is
_FEW = 0.001  # of the pixels
_NOTHING = 1 / 64  # of the range: where all samples lie that close to an end, nothing is seen
_BAND = 1 << 20  # values


def to_8_bits(values: NDArray[Any], samples: Samples) -> NDArray[np.uint8]:
    """Scale samples of any depth to 8 bits.

    Args:
        values: `(H, W)` or `(H, W, C)`, integers or floats; channels share one range.
        samples: What the file says of them.

    Returns:
        The shape of `values`, uint8; NaN and pixels without data are 0.

    Raises:
        ValueError: No value is a finite number.
    """
    if values.dtype == np.int32 and samples.signed is False:
        values = values.view(np.uint32)  # Pillow has no mode for them
    empty = np.isnan(values) | _is_value(values, samples.no_data)
    known = np.isfinite(values) & ~empty
    data = values.reshape(-1) if known.all() else values[known]
    if data.size == 0:
        raise ValueError("no pixel has a finite value")
    low, high = sample_range(data, samples)
    span = high - low or 1.0
    # One value everywhere, and nothing says whether it is dark or light: grey.
    start = 0.0 if high > low or low == 0 else 128.0
    levels = np.empty(values.shape, np.uint8)
    rows = max(1, _BAND * len(values) // values.size)
    for top in range(0, len(values), rows):  # by bands: float64 takes much memory
        band = np.nan_to_num(values[top : top + rows].astype(np.float64), posinf=high, neginf=low)
        levels[top : top + rows] = np.rint((np.clip(band, low, high) - low) / span * 255 + start)
    if samples.inverted:
        levels = 255 - levels
    levels[empty] = 0
    return levels


def sample_range(data: NDArray[Any], samples: Samples) -> tuple[float, float]:
    """Return the values that are shown black and white, as the file says or else the data."""
    if samples.high is not None:
        low, high = samples.low or 0.0, samples.high
    elif samples.png_bits is not None:
        low, high = 0.0, _png_white(data, samples.png_bits)
    else:
        return data_range(data)
    margin = _NOTHING * (high - low)  # within it, all would be black, or all white
    shows = data.min() < high - margin and data.max() > low + margin
    return (low, high) if shows else data_range(data)


def data_range(data: NDArray[Any]) -> tuple[float, float]:
    """Return the values that are shown black and white, from the values that there are.

    Args:
        data: Finite integers or floats, at least one.
    """
    low, high = float(data.min()), float(data.max())
    if low >= 0:
        if data.dtype.kind != "f" and high <= 65535:
            return 0.0, next(2.0**bits - 1 for bits in _INTEGER_BITS if high <= 2**bits - 1)
        for white in _FLOAT_WHITES:
            if white / 4 <= high <= white and data.dtype.kind == "f":
                return 0.0, white
        low = 0.0 if low < high else low
    low, high = _without_fill_value(data, low, high)
    # A few stray values must not leave all others in one shade.
    some = data[:: max(1, data.size // _BAND)]
    ends = np.quantile(some, (_FEW, 1 - _FEW), method="nearest")
    dark, light = float(ends[0]), float(ends[1])
    span = high - low
    if low < light < high - _FAR * span:
        high = light
    if low + _FAR * span < dark < high:
        low = dark
    return low, high


def _without_fill_value(data: NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """Leave out one value that is far from all others, such as -9999 for pixels without data."""
    if low < 0:
        others = data[data != data.min()]
        lowest = float(others.min(initial=high))
        if lowest < high and lowest - low > 2 * (high - lowest):
            return lowest, high
    others = data[data != data.max()]
    if others.size and float(others.min()) < (highest := float(others.max())):
        return low, highest if highest < high - _FAR * (high - low) else high
    return low, high


def _is_value(values: NDArray[Any], value: float | None) -> NDArray[np.bool_]:
    if value is None:
        return np.zeros(values.shape, np.bool_)
    with np.errstate(over="ignore"):  # the tag is text, and may be beyond float32
        found: NDArray[np.bool_] = values == (
            np.float32(value) if values.dtype.kind == "f" else int(value)
        )
    return found


def _png_white(data: NDArray[Any], bits: int) -> float:
    """Return the white of a PNG with significant bits, which should be the upper ones.

    Some writers leave the samples in the lower bits: then none is greater than these bits hold,
    and the bits below the upper ones are not zero, as they must be in dark samples that were
    shifted.
    """
    white = 2**bits - 1
    in_low_bits = bits < 16 and int(data.max()) <= white and bool((data % 2 ** (16 - bits)).any())
    return float(white if in_low_bits else 65535)
