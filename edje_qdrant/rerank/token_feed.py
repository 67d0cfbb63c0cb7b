"""Batches of tokens for the device that scores them, copied there while it scores."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["TokenFeed", "to_device"]


class TokenFeed:
    """Give the tokens of pairs batch by batch, on the device that scores them.

    Tokens in host memory are gathered into pinned memory and copied to a GPU on a stream of their
    own; both run while the GPU scores the batch before. The host waits for the GPU only to be no
    more than a batch ahead of it, which bounds the memory in use. For one thread and one stream.

    Args:
        tokens: `(n, m, d_text)`, in host memory or on a device.
        order: `(n,)` rows of `tokens` in the order of the batches; None for their own order.
        device: Device that scores.
    """

    def __init__(
        self,
        tokens: NDArray[np.float16] | Tensor,
        order: NDArray[np.intp] | None,
        device: torch.device,
    ) -> None:
        # Arrays that torch cannot view without a warning or at all are gathered by numpy: read-only
        # ones, such as those of a memory map, and those that lie backwards.
        if isinstance(tokens, np.ndarray) and tokens.flags.writeable and min(tokens.strides) > 0:
            tokens = torch.from_numpy(tokens)
        self._tokens, self._device = tokens, device
        self._rows: NDArray[np.intp] | Tensor | None = order  # (n,), where the tokens are
        if order is not None and isinstance(tokens, Tensor):
            self._rows = to_device(torch.from_numpy(order), tokens.device)
        self._copying: Any = None
        if device.type == "cuda" and (
            isinstance(tokens, np.ndarray) or tokens.device.type == "cpu"
        ):
            self._copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._queued: deque[Any] = deque()

    def batch(self, start: int, stop: int) -> Tensor:
        """Return the tokens of pairs `start` to `stop`, `(stop - start, m, d_text)`."""
        if self._copying is None:
            return self._gathered(start, stop, pinned=False).to(self._device)
        scoring: Any = torch.cuda.current_stream(self._device)
        self._wait_until_near(scoring)
        with torch.cuda.stream(self._copying):
            batch = self._gathered(start, stop, pinned=True).to(self._device, non_blocking=True)
        scoring.wait_stream(self._copying)
        batch.record_stream(scoring)  # or torch would reuse its memory as soon as it is released
        return batch

    def _wait_until_near(self, scoring: Any) -> None:
        """Wait until the GPU has scored all batches but the last one given."""
        self._queued.append(scoring.record_event())
        if len(self._queued) > 1:
            self._queued.popleft().synchronize()

    def _gathered(self, start: int, stop: int, *, pinned: bool) -> Tensor:
        """Return the batch's tokens where they are: a view if possible, or a copy."""
        tokens, rows = self._tokens, self._rows
        if isinstance(tokens, Tensor) and rows is None and (not pinned or tokens.is_pinned()):
            return tokens[start:stop]
        shape = (stop - start, *tokens.shape[1:])
        if isinstance(tokens, Tensor):
            batch = torch.empty(shape, dtype=tokens.dtype, device=tokens.device, pin_memory=pinned)
            if isinstance(rows, Tensor):
                return torch.index_select(tokens, 0, rows[start:stop], out=batch)
            return batch.copy_(tokens[start:stop])
        dtype = torch.from_numpy(np.empty(0, tokens.dtype)).dtype
        batch = torch.empty(shape, dtype=dtype, pin_memory=pinned)
        if isinstance(rows, np.ndarray):
            # Only mode "raise" needs a buffer beside `out`.
            np.take(tokens, rows[start:stop], axis=0, out=batch.numpy(), mode="clip")
        else:
            np.copyto(batch.numpy(), tokens[start:stop])
        return batch


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; from host memory to a GPU without waiting for the GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
        return pinned.to(device, non_blocking=True)
    return tensor.to(device)
