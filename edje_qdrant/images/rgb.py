"""Convert a decoded image to RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image

from edje_qdrant.errors import ImageReadError

__all__ = ["to_rgb"]


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB: drop transparency, reduce 16 bits a channel to 8.

    Raises:
        ImageReadError: The image's data cannot be decoded.
    """
    try:
        if image.mode == "RGB":
            image.load()
            return image
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            # Pillow clips these values at 255, which turns a 16-bit image white.
            values = np.asarray(image, dtype=np.float32)
            scale = 257.0 if values.size and values.max() > 255 else 1.0
            image = Image.fromarray(np.clip(values / scale, 0, 255).astype(np.uint8))
        elif "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageReadError(str(getattr(image, "filename", "") or image), str(error)) from error
