"""Checksums of stored tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

__all__ = ["checksums", "named"]


def checksums(codes: NDArray[np.uint8]) -> list[str]:
    """Return XXH3's 64 bits, as 16 hexadecimal digits, for each row of `(n, nbytes)` uint8.

    It detects accidental damage, all but one case in 2^64; as it has no key, it does not detect
    forgery. It is text, because not every client keeps all digits of a 64-bit JSON number.
    """
    return [xxhash.xxh3_64_hexdigest(row) for row in np.ascontiguousarray(codes)]


def named(image_ids: Sequence[str]) -> str:
    """Return the first three ids as text, and the number of the others."""
    more = f" and {len(image_ids) - 3} more" if len(image_ids) > 3 else ""
    return f"{', '.join(image_ids[:3])}{more}"
