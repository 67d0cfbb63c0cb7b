"""CUDA graphs of the joint encoder's forward, one per bucket of batch sizes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edje_qdrant.model.inference.packed_weights import PackedWeights

__all__ = ["CudaGraphs"]

# A graph saves the time between kernels; larger batches keep a GPU busy without one.
_LARGEST = 256
_SMALLEST = 8
_KEPT = 32

# A shape is recorded when it occurs the second time: recording costs several forwards.
_MET = 2

_Forward = Callable[[PackedWeights, Sequence[Tensor], Tensor], Tensor]


@dataclass(slots=True)
class _Recorded:
    graph: Any
    input_ids: Tensor
    tokens: Tensor
    logits: Tensor


class CudaGraphs:
    """Call `forward` for one group of captions, through a recorded graph if there is one.

    Args:
        forward: Called with weights, groups of captions and tokens, on a CUDA device.
    """

    def __init__(self, forward: _Forward) -> None:
        self._forward = forward
        self._lock = threading.Lock()  # a graph's inputs and outputs are shared by all calls
        self._weights: PackedWeights | None = None
        self._met: dict[tuple[int, int], int] = {}
        self._recorded: OrderedDict[tuple[int, int], _Recorded] = OrderedDict()

    def __call__(self, packed: PackedWeights, input_ids: Tensor, tokens: Tensor) -> Tensor:
        """Return `(n,)` logits of `(n, t)` captions and `(n, m, d)` tokens."""
        n, t = input_ids.shape
        if n > _LARGEST:
            return self._forward(packed, [input_ids], tokens)
        size = max(_SMALLEST, 1 << (n - 1).bit_length())
        with self._lock:
            if self._weights is not packed:
                self._weights = packed
                self._met.clear()
                self._recorded.clear()
            recorded = self._recorded.get((size, t))
            if recorded is None:
                met = self._met[size, t] = self._met.get((size, t), 0) + 1
                if met < _MET:
                    return self._forward(packed, [input_ids], tokens)
                recorded = self._record(packed, size, t, tokens)
                self._recorded[size, t] = recorded
                if len(self._recorded) > _KEPT:
                    self._recorded.popitem(last=False)
            self._recorded.move_to_end((size, t))
            recorded.input_ids[:n].copy_(input_ids)
            recorded.tokens[:n].copy_(tokens)
            recorded.graph.replay()
            return recorded.logits[:n].clone()

    def _record(self, packed: PackedWeights, size: int, t: int, like: Tensor) -> _Recorded:
        # Rows beyond the batch keep an earlier batch's values; rows do not affect each other.
        input_ids = torch.zeros((size, t), dtype=torch.int64, device=like.device)
        tokens = torch.zeros((size, *like.shape[1:]), dtype=like.dtype, device=like.device)
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._forward(packed, [input_ids], tokens)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            logits = self._forward(packed, [input_ids], tokens)
        return _Recorded(graph, input_ids, tokens, logits)
