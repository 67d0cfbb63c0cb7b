"""CUDA graphs of the joint encoder's forward, one per bucket of sizes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edje_qdrant.model.inference.fused_forward import PackedPairs
from edje_qdrant.model.inference.packed_weights import PackedWeights

__all__ = ["CudaGraphs"]

# A graph saves the time between kernels; larger batches keep a GPU busy without one.
_LARGEST = 512
_FEWEST_PAIRS, _FEWEST_ROWS = 8, 128
_KEPT = 32

# A bucket is recorded when it occurs the second time: recording costs several forwards.
_MET = 2

_Forward = Callable[[PackedWeights, PackedPairs], Tensor]

# Pairs, rows, and limit of the sequences' lengths.
_Bucket = tuple[int, int, int]


@dataclass(slots=True)
class _Recorded:
    graph: Any
    pairs: PackedPairs
    logits: Tensor


class CudaGraphs:
    """Call `forward` for a batch of pairs, through a recorded graph if there is one.

    A graph serves all batches of its bucket, whatever the lengths of their captions: pairs that are
    missing are empty sequences, and rows that are missing are computed and not used.

    Args:
        forward: Called with weights and pairs, on a CUDA device; returns `(n,)` logits.
    """

    def __init__(self, forward: _Forward) -> None:
        self._forward = forward
        self._lock = threading.Lock()  # a graph's inputs and outputs are shared by all calls
        self._weights: PackedWeights | None = None
        self._pool: Any = None
        self._met: dict[_Bucket, int] = {}
        self._recorded: OrderedDict[_Bucket, _Recorded] = OrderedDict()
        self._replayed: Any = None  # event of the last replay

    def __call__(self, packed: PackedWeights, pairs: PackedPairs) -> Tensor:
        """Return `(n,)` logits."""
        n = len(pairs.tokens)
        if n > _LARGEST:
            return self._forward(packed, pairs)
        bucket = _bucket(pairs)
        with self._lock:
            if self._weights is not packed:
                self._weights = packed
                self._met.clear()
                self._recorded.clear()
                self._pool = torch.cuda.graph_pool_handle()
            recorded = self._recorded.get(bucket)
            if recorded is None:
                met = self._met[bucket] = self._met.get(bucket, 0) + 1
                if met < _MET:
                    return self._forward(packed, pairs)
                recorded = self._recorded[bucket] = self._record(packed, bucket, pairs)
                if len(self._recorded) > _KEPT:
                    self._recorded.popitem(last=False)
            self._recorded.move_to_end(bucket)
            stream: Any = torch.cuda.current_stream(pairs.tokens.device)
            if self._replayed is None:
                self._replayed = torch.cuda.Event()  # type: ignore[no-untyped-call]
            else:  # another thread's stream may still be at the last replay
                stream.wait_event(self._replayed)
            own = recorded.pairs
            own.ids[: len(pairs.ids)].copy_(pairs.ids)
            own.bounds[:, : n + 1].copy_(pairs.bounds)
            own.bounds[:, n + 1 :].copy_(pairs.bounds[:, -1:])
            own.tokens[:n].copy_(pairs.tokens)
            recorded.graph.replay()
            logits = recorded.logits[:n].clone()
            self._replayed.record(stream)
            return logits

    def _record(self, packed: PackedWeights, bucket: _Bucket, like: PackedPairs) -> _Recorded:
        size, rows, longest = bucket
        tokens = torch.zeros(
            (size, *like.tokens.shape[1:]), dtype=like.tokens.dtype, device=like.tokens.device
        )
        pairs = PackedPairs(
            ids=torch.zeros(rows, dtype=torch.int64, device=tokens.device),
            bounds=torch.zeros((2, size + 1), dtype=torch.int32, device=tokens.device),
            tokens=tokens,
            rows=rows,
            longest=longest,
        )
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._forward(packed, pairs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # One pool for all graphs: they run one at a time, and keep nothing but their outputs.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = self._forward(packed, pairs)
        return _Recorded(graph, pairs, logits)


def _bucket(pairs: PackedPairs) -> _Bucket:
    """Return the sizes of the smallest bucket that holds the pairs."""
    size = max(_FEWEST_PAIRS, 1 << (len(pairs.tokens) - 1).bit_length())
    # Rows are computed, unlike empty sequences: at most an eighth more of them.
    step = max(_FEWEST_ROWS, 1 << max(pairs.rows.bit_length() - 4, 0))
    rows = -(-pairs.rows // step) * step
    return size, rows, -(-pairs.longest // 32) * 32
