"""Where tokens live, behind one protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["TokenReference", "TokenStore"]

#: What a point's payload keeps under `_edje`: enough to find a picture's tokens and to check them.
TokenReference = Mapping[str, Any]


class TokenStore(Protocol):
    """Keep `(m, d_text)` float16 tokens for each picture."""

    #: Whether the tokens travel in the reference itself, so that reading needs the whole payload.
    in_payload: bool

    def put(self, image_ids: Sequence[str], tokens: NDArray[np.float16]) -> list[TokenReference]:
        """Write `(n, m, d_text)` tokens; return one reference a picture, in order."""

    def flush(self) -> None:
        """Make everything put so far durable."""

    def get(
        self, image_ids: Sequence[str], references: Sequence[TokenReference]
    ) -> NDArray[np.float16]:
        """Read tokens back as `(n, m, d_text)`, in order.

        Raises:
            TokensNotFoundError: A reference points outside the store.
            TokensCorruptError: Bytes differ from what was written; names the ids.
        """

    def nbytes_per_image(self) -> int:
        """Return the bytes one picture's tokens take, as stored."""

    def close(self) -> None:
        """Let go of the files; a second call does nothing."""
