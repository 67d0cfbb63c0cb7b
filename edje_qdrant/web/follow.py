"""Follow an alias: load what it names by now, then let the service change over."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from edje_qdrant.errors import EdjeError
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.text import printable
from edje_qdrant.web.service import Service

__all__ = ["AliasFollower", "Load"]

_log = logging.getLogger("edje_qdrant.web")

#: Opens what the name stands for now; is given what is served, whose model may serve again.
Load = Callable[[TwoStageRetriever], TwoStageRetriever]

# Seconds between two looks at the name, and after a load that failed.
_EVERY = 1.0
_AGAIN = 10.0


class AliasFollower:
    """Look every second at what the collection's name stands for, and change the service over.

    That is another collection if the name is an alias that was moved, and another model's if the
    collection was deleted and created again. It is opened, and its model loaded, while the service
    goes on; then the next request uses it. If that fails, the service keeps what it has, and it is
    tried again ten seconds later, or when the name stands for something else.

    Args:
        service: Is changed over.
        load: Opens what the name stands for.
        clock: Returns seconds.
    """

    def __init__(
        self, service: Service, load: Load, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._service, self._load, self._clock = service, load, clock
        self._failed: tuple[str, str] | None = None
        self._failed_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="edje-following", daemon=True)

    def start(self) -> None:
        """Begin to look, in a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """End; a model that is being loaded is not waited for, and not used."""
        self._stop.set()

    def look(self) -> None:
        """Look once, and change over if the name stands for something else than is served."""
        before = self._service.retriever
        try:
            target = before.collection.named_now()
        except EdjeError:
            return  # the service's own probes say that the index is away
        served = before.collection.resolved_name, before.collection.contract.model_key
        if target == served:
            self._failed = None
            self._service.metrics.follows(True)
            return
        self._service.metrics.follows(False)
        if target == self._failed and self._clock() - self._failed_at < _AGAIN:
            return
        name = printable(before.collection.name)
        _log.info("%s stands for %s now, not for %s: loading it", name, target[0], served[0])
        try:
            new = self._load(before)
        except Exception as error:  # whatever is wrong, the service goes on
            _log.error(
                "%s, which %s stands for now, cannot be served; %s is still served",
                target[0], name, served[0], exc_info=error,
            )  # fmt: skip
            self._failed, self._failed_at = target, self._clock()
            self._service.metrics.changed("failed")
            return
        if self._stop.is_set():
            new.close()
            return
        self._service.change_to(new)
        self._service.metrics.changed("changed")
        self._service.metrics.follows(True)
        model = printable(new.model.name_or_path or "")
        _log.info("serving %s now, with the model %s", new.collection.resolved_name, model)

    def _work(self) -> None:
        while not self._stop.wait(_EVERY):
            self.look()
