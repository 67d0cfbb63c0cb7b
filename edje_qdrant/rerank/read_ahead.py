"""Tokens of the next candidates, read in another thread while earlier ones are scored."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import TokensCorruptError, TokensNotFoundError
from edje_qdrant.types import Candidate

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ReadAhead", "Tokens"]

#: Tokens of `n` candidates, `(n, m, d_text)` float16: in host memory, or on a model's device.
Tokens: TypeAlias = "NDArray[np.float16] | Tensor"


class ReadAhead:
    """Read the tokens of one query's candidates in order, some before they are asked for.

    For one thread.

    Args:
        candidates: `n` candidates.
        read: Reads tokens, `(k, m, d_text)`.
        pool: Runs what is read ahead.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        read: Callable[[Sequence[Candidate]], Tokens],
        pool: Executor,
    ) -> None:
        self._candidates, self._read, self._pool = candidates, read, pool
        self._begun: deque[tuple[int, int, Future[Tokens]]] = deque()  # places without a gap

    def take(self, start: int, stop: int) -> Tokens:
        """Return the tokens of candidates `start` to `stop`, `(stop - start, m, d_text)`.

        Raises:
            TokensNotFoundError: Some of these candidates have no tokens; names the ids.
            TokensCorruptError: Some of their tokens are damaged; names the ids.
        """
        parts: list[Tokens] = []
        at = start
        while self._begun and at < stop and self._begun[0][0] <= at < self._begun[0][1]:
            first, end, future = self._begun.popleft()
            try:
                tokens = future.result()
            except (TokensNotFoundError, TokensCorruptError):
                self.drop()  # the error may be about candidates that are not asked for
                break
            parts.append(tokens[at - first : min(end, stop) - first])
            at = min(end, stop)
            if end > stop:
                self._begun.appendleft((first, end, future))
        if at < stop:
            self.drop()
            parts.append(self._read(self._candidates[at:stop]))
        return parts[0] if len(parts) == 1 else _joined(parts)

    def begin(self, start: int, stop: int) -> None:
        """Begin to read candidates up to `stop`, those from `start` on that were not begun."""
        start = max(start, self._begun[-1][1]) if self._begun else start
        stop = min(stop, len(self._candidates))
        if start < stop:
            read = partial(self._read, self._candidates[start:stop])
            # With the time limits of this thread.
            future = self._pool.submit(copy_context().run, read)
            self._begun.append((start, stop, future))

    def drop(self) -> None:
        """Forget what was read ahead, and do not begin what waits."""
        for _, _, future in self._begun:
            future.cancel()
        self._begun.clear()


def _joined(parts: Sequence[Tokens]) -> Tokens:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(cast("Sequence[NDArray[np.float16]]", parts))
    import torch  # not for exported models

    return torch.cat(cast("list[Tensor]", [*parts]))
