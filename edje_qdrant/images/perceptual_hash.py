"""Perceptual hashes: 64 bits of an image that copies, resized and re-encoded images share."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edje_qdrant.errors import MissingExtraError

__all__ = ["HASH_BITS", "PerceptualHash", "can_hash", "hash_image", "small_square"]

#: Bits of a hash.
HASH_BITS = 64

# Side of the image that is hashed; the hash itself looks at 32 x 32 pixels.
_SIDE = 128


@dataclass(frozen=True, slots=True)
class PerceptualHash:
    """Hold the hashes of an image.

    Attributes:
        bits: `(64,)` bool.
        mirrored: `(64,)` bool, of the image mirrored left to right.
    """

    bits: NDArray[np.bool_]
    mirrored: NDArray[np.bool_]

    def distance(self, other: PerceptualHash) -> int:
        """Return how many of the 64 bits differ, from the other image or the mirrored one.

        Two unrelated images differ in about 32 bits.
        """
        return min(
            int(np.count_nonzero(self.bits != other.bits)),
            int(np.count_nonzero(self.bits != other.mirrored)),
        )


def can_hash() -> bool:
    """Return whether the extra `duplicates` is installed."""
    return importlib.util.find_spec("imagehash") is not None


def small_square(image: Image.Image) -> NDArray[np.uint8]:
    """Return an RGB image squeezed to `(128, 128, 3)`, which is enough for its hash."""
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0))


def hash_image(image: NDArray[np.uint8]) -> PerceptualHash:
    """Return the hashes (pHash) of `(H, W, 3)` uint8.

    Raises:
        MissingExtraError: imagehash is not installed.

    Source: https://www.phash.org (DCT hash), as imagehash computes it.
    """
    try:
        from imagehash import phash
    except ImportError as error:
        raise MissingExtraError("imagehash", "duplicates") from error
    both = (phash(Image.fromarray(each)).hash.ravel() for each in (image, image[:, ::-1]))
    return PerceptualHash(*both)
