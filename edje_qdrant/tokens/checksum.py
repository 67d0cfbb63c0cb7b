"""A checksum of stored tokens that costs little more than reading them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import TokensCorruptError

__all__ = ["checksums", "require_checksums"]

# Two sums of 64-bit words times fixed odd weights, mod 2^64; the second reads the words four bytes
# further on. On 100 records of 49,152 bytes this took half of what a fast `zlib.crc32` takes, and
# plain builds of zlib are several times slower than that (benchmarks/token_fetch.py).
#
# What it detects:
# - Any change within one aligned 8-byte word, a flipped bit or a whole one overwritten: surely. The
#   first sum changes by (difference x odd weight), which is 0 mod 2^64 only if the difference is.
# - Any other change, words swapped or runs zeroed: all but one in 2^32 or fewer. Write a word's
#   difference as 2^k x odd. One sum alone is weak where k is high: the top bits of two words, when
#   both flip, cancel always, as the weights are odd. But every byte is in the low half of a word
#   in one of the two readings (save the last four, where the first sum's sureness or another
#   changed byte serves), so in one of them some k <= 31; then at most one in 2^(63 - k) of the odd
#   weights lets the whole cancel.
# It guards against accidents, not against forgers, who can read the weights here.


@lru_cache(maxsize=8)
def _weights(words: int) -> NDArray[np.uint64]:
    """Return `(2, words)` odd 64-bit numbers: SplitMix64's stream, so the same for ever."""
    z = np.arange(1, 2 * words + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    # Interleaved, so that a word's weights do not depend on how many words there are.
    return np.ascontiguousarray((z | np.uint64(1)).reshape(words, 2).T)


def checksums(codes: NDArray[np.uint8]) -> list[str]:
    """Return 32 hexadecimal digits for each row of `(n, nbytes)` uint8.

    Text, because a JSON number of 64 bits does not survive every client.
    """
    if codes.shape[1] % 8:
        codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 8)))
    codes = np.ascontiguousarray(codes)
    first, second = _weights(codes.shape[1] // 8)
    sums = np.empty((len(codes), 2), dtype=">u8")
    sums[:, 0] = np.einsum("nw,w->n", codes.view("<u8"), first)
    sums[:, 1] = np.einsum("nw,w->n", codes[:, 4:-4].view("<u8"), second[:-1])
    text = sums.tobytes().hex()
    return [text[i : i + 32] for i in range(0, len(text), 32)]


def require_checksums(
    image_ids: Sequence[str],
    references: Sequence[Mapping[str, Any]],
    codes: NDArray[np.uint8],
    *,
    where: str,
) -> None:
    """Check `(n, nbytes)` stored bytes, read at `where`, against what their references say.

    Raises:
        TokensCorruptError: Some differ; names the pictures.
    """
    found = checksums(codes)
    bad = [
        image_id
        for image_id, reference, checksum in zip(image_ids, references, found, strict=True)
        if reference.get("checksum") != checksum
    ]
    if bad:
        raise TokensCorruptError(
            f"the tokens of {named(bad)} in {where} are not what was written; "
            "restore the store from a copy, or delete these pictures and ingest them again",
            bad,
        )


def named(image_ids: Sequence[str]) -> str:
    """Return the first few ids as text, and how many more there are."""
    more = f" and {len(image_ids) - 3} more" if len(image_ids) > 3 else ""
    return f"{', '.join(image_ids[:3])}{more}"
