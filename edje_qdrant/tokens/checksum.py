"""A checksum of stored tokens that costs little more than reading them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

__all__ = ["checksums", "named"]


def checksums(codes: NDArray[np.uint8]) -> list[str]:
    """Return XXH3's 64 bits, as 16 hexadecimal digits, for each row of `(n, nbytes)` uint8.

    It guards against accidents, of which it misses one in 2^64; not against forgers, as it has no
    key. Text, because a JSON number of 64 bits does not survive every client.
    """
    return [xxhash.xxh3_64_hexdigest(row) for row in np.ascontiguousarray(codes)]


def named(image_ids: Sequence[str]) -> str:
    """Return the first few ids as text, and how many more there are."""
    more = f" and {len(image_ids) - 3} more" if len(image_ids) > 3 else ""
    return f"{', '.join(image_ids[:3])}{more}"
