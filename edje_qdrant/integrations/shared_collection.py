"""A collection that components name instead of holding it, so that they can be serialized.

Components of one process that name the same collection share it, so that a retriever and a ranker
of one pipeline can use the same folder.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock
from typing import Any
from weakref import finalize

from edje_qdrant.attach.attached_collection import AttachedCollection
from edje_qdrant.model.inference.precision import Precision
from edje_qdrant.search.retriever import TwoStageRetriever

__all__ = ["SharedCollection"]

_open: dict[tuple[Any, ...], _Opened] = {}
_lock = RLock()


class _Opened:
    """Hold an open collection and the number of components that use it."""

    def __init__(self, collection: TwoStageRetriever | AttachedCollection) -> None:
        self.collection = collection
        self.users = 0


class SharedCollection:
    """Hold the location of a component's collection and its model; open and release it.

    Args:
        kind: `TwoStageRetriever`, or `AttachedCollection` for a collection of another program.
        location: A folder, `"http://..."` or `"https://..."`.
        name: Name of the collection.
        model: The argument of `EDJEModel.from_pretrained`; None for the name stored in the
            collection.
        device: The device for the model; None for CUDA if available.
        precision: Precision of the joint encoder; see `Reranker`.
        api_key: Returns the key that is sent with every request to a server, when it is opened.
    """

    def __init__(
        self,
        kind: type[TwoStageRetriever] | type[AttachedCollection],
        location: str,
        name: str,
        *,
        model: str | None = None,
        device: str | None = None,
        precision: Precision = "auto",
        api_key: Callable[[], str | None] | None = None,
    ) -> None:
        self._kind, self._location, self._name = kind, location, name
        self._model, self._device, self._precision = model, device, precision
        self._api_key = api_key
        self._release: finalize[Any, Any] | None = None

    def opened(self) -> Any:
        """Return the collection; it is opened once for all components that name it.

        Raises:
            StoreError: The collection cannot be opened.
            CheckpointError: The model cannot be loaded.
            ConfigError: An argument is invalid.
            EngineUnavailableError: The server cannot be reached.
        """
        api_key = self._api_key() if self._api_key else None
        settings = (self._location, self._name, self._model, self._device, self._precision)
        key = (self._kind, *settings, api_key)
        with _lock:
            if self._release is None or not self._release.alive:
                if key not in _open:
                    _open[key] = _Opened(
                        self._kind.open(
                            self._location,
                            self._name,
                            model=self._model,
                            device=self._device,
                            api_key=api_key,
                            precision=self._precision,
                        )
                    )
                _open[key].users += 1
                self._release = finalize(self, _release, key)
            return _open[key].collection

    def close(self) -> None:
        """Release the collection; it is closed when no component uses it any more."""
        if self._release is not None:
            self._release()


def _release(key: tuple[Any, ...]) -> None:
    with _lock:
        shared = _open[key]
        shared.users -= 1
        if not shared.users:
            del _open[key]
            shared.collection.close()
