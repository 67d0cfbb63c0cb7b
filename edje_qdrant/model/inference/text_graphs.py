"""Text encoding through CUDA graphs, as launching the kernels takes longer than running them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from edje_qdrant.model.edje import EDJEModel
from edje_qdrant.model.flat_modules import FlatModules
from edje_qdrant.text import clean_captions

__all__ = ["TextGraphs"]

_log = logging.getLogger(__name__)

# Texts in a batch, at most; larger batches keep a GPU busy without a graph. Graphs have few sizes,
# and cuDNN's attention takes long to prepare for every new one.
_LARGEST = 64

# A graph is recorded when its size occurs the second time: recording costs several forwards.
_MET = 2


@runtime_checkable
class _IdEncoder(Protocol):
    """An encoder whose text tower can be called with ids, which all have the same length."""

    @property
    def text_tower(self) -> nn.Module: ...
    def tokenize(self, texts: Sequence[str]) -> Tensor: ...
    def encode_ids(self, ids: Tensor) -> Tensor: ...


@dataclass(slots=True)
class _Recorded:
    graph: Any
    ids: Tensor
    embeddings: Tensor


class TextGraphs:
    """Encode texts as `EDJEModel.embed_texts` does, on a GPU through recorded graphs.

    A graph runs with the weights' current values. If weights were moved or replaced, or the length
    of the ids differs, graphs are recorded again. Threads may share an object.

    Args:
        model: Encodes.
    """

    def __init__(self, model: EDJEModel) -> None:
        self._model = model
        self._lock = threading.Lock()  # a graph's inputs and outputs are shared by all calls
        self._flat = FlatModules()
        self._weights: list[Any] = []
        self._met: dict[int, int] = {}
        self._recorded: dict[int, _Recorded] = {}
        self._pool: Any = None
        self._replayed: Any = None  # event of the last replay
        self._works = True

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return `(n, d)` float32 embeddings on the model's device.

        Raises:
            ConfigError: A text is empty after clean-up.
        """
        model, encoder = self._model, self._model.encoder
        if (
            model.device.type != "cuda"
            or not 0 < len(texts) <= _LARGEST
            or not self._works
            or torch.is_autocast_enabled("cuda")
            or not isinstance(encoder, _IdEncoder)
        ):
            return model.embed_texts(texts)
        cleaned = clean_captions(texts)
        with model.inference(), self._lock:
            return self._embedded(encoder, encoder.tokenize(cleaned))

    def _embedded(self, encoder: _IdEncoder, ids: Tensor) -> Tensor:
        """Encode `(n, t)` ids."""
        n = len(ids)
        size = 1 << (n - 1).bit_length()
        weights: list[Any] = [
            (ids.shape[1], ids.dtype, ids.device),
            *(
                parameter.data_ptr()
                for module in self._flat.below(encoder.text_tower)
                for parameter in module._parameters.values()
                if parameter is not None
            ),
        ]
        if weights != self._weights:
            self._weights = weights
            self._met.clear()
            self._recorded.clear()
        recorded = self._recorded.get(size)
        if recorded is None:
            met = self._met[size] = self._met.get(size, 0) + 1
            if met >= _MET:
                recorded = self._record(encoder, ids, size)
            if recorded is None:
                return encoder.encode_ids(ids).float()
            self._recorded[size] = recorded
        stream: Any = torch.cuda.current_stream(ids.device)
        if self._replayed is None:
            self._replayed = torch.cuda.Event()  # type: ignore[no-untyped-call]
        else:  # another thread's stream may still be at the last replay
            stream.wait_event(self._replayed)
        recorded.ids[:n].copy_(ids)
        recorded.graph.replay()
        embeddings = recorded.embeddings[:n].clone()
        self._replayed.record(stream)
        return embeddings

    def _record(self, encoder: _IdEncoder, ids: Tensor, size: int) -> _Recorded | None:
        """Record a graph for `size` texts; None, also for later calls, if that is not possible."""
        own = torch.zeros((size, ids.shape[1]), dtype=ids.dtype, device=ids.device)
        own[: len(ids)].copy_(ids)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph: Any = torch.cuda.CUDAGraph()
        try:
            stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                encoder.encode_ids(own)
            torch.cuda.current_stream().wait_stream(stream)
            # One pool for all graphs: they run one at a time, and keep nothing but their outputs.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                embeddings = encoder.encode_ids(own).float()
        except Exception:  # whatever the tower does that cannot be recorded
            _log.warning("the text tower cannot be recorded as a CUDA graph; it runs without one",
                         exc_info=True)  # fmt: skip
            self._works = False
            return None
        return _Recorded(graph, own, embeddings)
