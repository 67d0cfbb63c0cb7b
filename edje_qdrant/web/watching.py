"""Keep the served collection the same as a folder, in a thread of the service.

A collection in a folder is open in one process at a time, so only the service itself can do it.
"""

from __future__ import annotations

import logging
import threading

from edje_qdrant.errors import EdjeError
from edje_qdrant.images import DecodeLimits
from edje_qdrant.ingest.watch import FolderWatch, WatchReport
from edje_qdrant.text import printable
from edje_qdrant.web.service import Service
from edje_qdrant.web.settings import UPLOADS

__all__ = ["ServiceWatch"]

_log = logging.getLogger("edje_qdrant.web")

# Decoders beside those of the service.
_DECODERS = 2
# Images encoded at a time: searches use the same processors or GPU.
_BATCH = 8
# Seconds after an error until the next attempt.
_AGAIN = 10.0
_FAILURES_SHOWN = 10


class ServiceWatch:
    """Watch the folder of the service's settings; see `FolderWatch`.

    After an error, such as a server that is away, it starts again, which catches up.

    Args:
        service: Serves the collection.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._watch: FolderWatch | None = None
        self._thread = threading.Thread(target=self._work, name="edje-watching", daemon=True)

    def start(self) -> None:
        """Begin to watch, in a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """End after the images that are being encoded."""
        with self._lock:
            self._stop.set()
            if self._watch is not None:
                self._watch.stop()
        self._thread.join()

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                self._run()
            except EdjeError as error:
                _log.error("watching ended, and is tried again in 10 s: %s", error)
            except Exception as error:  # whatever is wrong, the service goes on
                _log.error("watching ended, and is tried again in 10 s", exc_info=error)
            self._stop.wait(_AGAIN)

    def _run(self) -> None:
        settings, retriever = self._service.settings, self._service.retriever
        assert settings.images is not None
        limits = DecodeLimits(
            _DECODERS, settings.decode_memory, settings.decode_seconds, settings.max_pixels
        )
        with FolderWatch(
            settings.images, retriever.collection, retriever.model, limits=limits,
            file_fields=settings.file_fields, frames_every=settings.frames_every,
            pdf_pages=settings.pdf_pages, batch_size=_BATCH, wait=0,
            # Uploads are added by their requests, with the fields that were sent.
            except_below=settings.images / UPLOADS if settings.ingest else None,
        ) as watch:  # fmt: skip
            with self._lock:
                if self._stop.is_set():
                    return
                self._watch = watch
            _log.info("watching %s", printable(str(settings.images)))
            watch.run(self._told)

    def _told(self, report: WatchReport) -> None:
        warn = report.failed or report.kept or report.away
        level = logging.WARNING if warn else logging.INFO
        _log.log(level, "watched folder: %s", printable(str(report)))
        for failure in report.failed[:_FAILURES_SHOWN]:
            _log.warning("%s: %s", printable(failure.path), printable(failure.reason))
        self._service.metrics.ingested(report.added, 0, 0, len(report.failed))
