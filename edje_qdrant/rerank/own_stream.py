"""A CUDA stream of the scoring's own, and the copy of its results to the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["OwnStream"]


class OwnStream:
    """Queue work on a GPU beside the work of other threads; on a CPU, do nothing.

    Threads share a device's default stream, where all work waits for all work queued before it. On
    a stream of its own, a batch of pairs is scored while another thread encodes the next texts.
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, Any] = {}

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Queue the block's work on the own stream, after the work queued on the current one.

        Tensors of the current stream that the block reads must be kept until its work is done.
        """
        if device.type != "cuda":
            yield
            return
        stream = self._streams.get(device)
        if stream is None:
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stream = self._streams.setdefault(device, stream)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            yield

    @staticmethod
    def numbers(tensor: Tensor) -> NDArray[Any]:
        """Copy a result to the host, and wait for it alone, not for work queued later."""
        if tensor.device.type != "cuda":
            return tensor.cpu().numpy()
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        pinned.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(tensor.device).record_event().synchronize()
        return np.array(pinned.numpy())  # pinned memory is scarce
