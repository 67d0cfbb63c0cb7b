"""Convert decoded images to what a viewer shows: 8-bit RGB in sRGB, on white."""

from __future__ import annotations

import numpy as np
from PIL import Image

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images.colour import to_srgb
from edje_qdrant.images.depth import sample_range, to_8_bits
from edje_qdrant.images.samples import DEEP_MODES, Samples, read_samples

__all__ = ["to_rgb"]

_WHITE = (255, 255, 255)
# Pixels of the largest image that is converted as a whole, and of a band of a larger one.
_WHOLE, _BAND = 1 << 24, 1 << 20


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to 8-bit RGB in sRGB, as a viewer shows it on a white page; thread-safe.

    Transparent pixels show white. Deep and float samples are scaled by what the file says, or by
    the range of the data. ICC profiles are converted to sRGB. `docs/images.md` has the rules.

    Args:
        image: An image of any mode. One that Pillow opened is decoded.

    Returns:
        The image itself, if it is RGB in sRGB and without transparency; else a new one.

    Raises:
        ImageReadError: The image's data cannot be decoded.
    """
    try:
        samples = read_samples(image)
        if image.mode == "RGB" and not ("transparency" in image.info or samples.deep is not None):
            return to_srgb(image, image.info)
        if image.width * image.height > _WHOLE and _is_pixelwise(image, samples):
            return _in_bands(image, samples)
        return _on_white(image, samples)
    except Exception as error:  # decoders raise any type of error for damaged files
        reason = str(error) or type(error).__name__
        raise ImageReadError(str(getattr(image, "filename", "") or image), reason) from error


def _is_pixelwise(image: Image.Image, samples: Samples) -> bool:
    """Return whether each pixel is converted without regard to the others."""
    deep = samples.deep is not None or image.mode in DEEP_MODES
    return not deep and not samples.signed and samples.box is None


def _in_bands(image: Image.Image, samples: Samples) -> Image.Image:
    """Convert a large image in horizontal bands, which saves the memory of several copies."""
    rgb = Image.new("RGB", image.size)
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        rgb.paste(_on_white(image.crop(box), samples), box)
    return rgb


def _on_white(image: Image.Image, samples: Samples) -> Image.Image:
    opaque, alpha = _without_alpha(image, samples)
    if samples.box is not None:
        alpha = _only_within(samples.box, image.size, alpha)
    rgb = to_srgb(opaque, image.info)
    if alpha is None:
        return rgb
    page = Image.new("RGB", rgb.size, _WHITE)
    page.paste(rgb, mask=alpha)
    return page


def _without_alpha(image: Image.Image, samples: Samples) -> tuple[Image.Image, Image.Image | None]:
    """Split an image into 8-bit colours and their opacity, mode L; None if all are opaque."""
    key = image.info.get("transparency")
    if samples.deep is not None:
        return _split_deep(samples.deep, samples, key)
    if image.mode in DEEP_MODES:
        values = np.asarray(image)
        alpha = Image.fromarray(_unlike(values[..., None], key)) if isinstance(key, int) else None
        return Image.fromarray(to_8_bits(values, samples)), alpha
    if samples.signed and image.mode == "L":
        return Image.fromarray(to_8_bits(np.asarray(image).view(np.int8), samples)), None
    if isinstance(key, int) and image.mode in ("1", "L"):
        image = image.convert("L")
        levels = np.asarray(image)[..., None]
        return image, Image.fromarray(_unlike(levels, key * samples.key_factor))
    if key is not None or image.mode in ("PA", "RGBa"):
        image = image.convert("RGBA")
    elif image.mode == "La":
        image = image.convert("LA")
    if image.mode == "LA":
        return image.getchannel("L"), image.getchannel("A")
    if image.mode == "RGBA":
        return image.convert("RGB"), image.getchannel("A")
    return image, None


def _only_within(
    box: tuple[int, int, int, int], size: tuple[int, int], alpha: Image.Image | None
) -> Image.Image:
    """Return the opacity of an image that has nothing outside of a box, mode L."""
    covered = Image.new("L", size, 0)
    covered.paste(255 if alpha is None else alpha.crop(box), box)
    return covered


def _split_deep(
    values: np.ndarray[tuple[int, ...], np.dtype[np.uint16]], samples: Samples, key: object
) -> tuple[Image.Image, Image.Image | None]:
    """Split `(H, W, C)` samples of 16 bits; C is 2 or 4 with an alpha channel, else 3."""
    channels = values.shape[-1]
    if channels == 3:
        opaque = to_8_bits(values, samples)
        alpha = _unlike(values, key) if isinstance(key, tuple) else None
    else:
        opaque = to_8_bits(values[..., :-1], samples)
        _, white = sample_range(values[..., :-1], samples)
        full = white if values[..., -1].max() <= white else 65535.0
        alpha = to_8_bits(values[..., -1], Samples(high=full))
    if channels == 2:
        opaque = opaque[..., 0]
    return Image.fromarray(opaque), None if alpha is None else Image.fromarray(alpha)


def _unlike(
    values: np.ndarray[tuple[int, ...], np.dtype[np.uint16]], key: object
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return 0 where a pixel of `(H, W, C)` is the transparent one, else 255: `(H, W)`."""
    return np.where((values == np.asarray(key)).all(-1), 0, 255).astype(np.uint8)
