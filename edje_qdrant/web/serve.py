"""Run the service with uvicorn until it is stopped."""

from __future__ import annotations

import json
import logging
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from edje_qdrant.errors import without_keys
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.web.installed import check_installed
from edje_qdrant.web.settings import ServiceSettings

if TYPE_CHECKING:
    from edje_qdrant.web.follow import Load

__all__ = ["JsonLines", "serve", "serve_app"]

_FIELDS = ("request_id", "method", "route", "status", "ms", "client")


class JsonLines(logging.Formatter):
    """Formatter that writes each log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({name: getattr(record, name) for name in _FIELDS if hasattr(record, name)})
        if record.exc_info and record.exc_info[1] is not None:
            told = "".join(traceback.format_exception(record.exc_info[1]))
            line["error"] = without_keys(told)
        return json.dumps(line)


def serve(
    retriever: TwoStageRetriever,
    settings: ServiceSettings,
    *,
    follow: Load | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    grace: float = 10.0,
) -> None:
    """Serve a collection until SIGTERM or SIGINT; finish the requests in progress first.

    Args:
        retriever: Answers the searches; closed at the end.
        settings: Keys and limits.
        follow: Opens what the collection's name stands for when it is called; see `create_app`.
        host: Address to listen on.
        port: Port to listen on.
        grace: Seconds for requests in progress to finish.

    Raises:
        MissingExtraError: The extra `web` is not installed.
    """
    check_installed()
    from edje_qdrant.web.app import create_app

    serve_app(create_app(retriever, settings, follow=follow), host=host, port=port, grace=grace)


def serve_app(app: Any, *, host: str, port: int, grace: float) -> None:
    """Serve an ASGI application until SIGTERM or SIGINT; logs go to stderr as lines of JSON.

    Args:
        app: The application.
        host: Address to listen on.
        port: Port to listen on.
        grace: Seconds for requests in progress to finish.
    """
    import uvicorn

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    for name in ("edje_qdrant", "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,  # the middleware writes it
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(grace)),
        ws="none",
    )
    with _ignore_signals():
        uvicorn.Server(config).run()


@contextmanager
def _ignore_signals() -> Iterator[None]:
    """Ignore SIGTERM and SIGINT: uvicorn handles them, and raises them again when it ends."""
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: None) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
