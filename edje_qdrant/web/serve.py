"""Run the service until it is told to end."""

from __future__ import annotations

import json
import logging
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

from edje_qdrant.errors import MissingExtraError
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.web.settings import ServiceSettings

__all__ = ["JsonLines", "check_installed", "serve"]

_FIELDS = ("request_id", "method", "route", "status", "ms", "client")


class JsonLines(logging.Formatter):
    """Write every log record as one JSON object in one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({name: getattr(record, name) for name in _FIELDS if hasattr(record, name)})
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(line)


def check_installed() -> None:
    """Check that what the service is made of is there.

    Raises:
        MissingExtraError: It is not.
    """
    try:
        import fastapi
        import prometheus_client
        import python_multipart
        import uvicorn
    except ImportError as error:
        raise MissingExtraError(error.name or "fastapi", "web") from error
    del fastapi, prometheus_client, python_multipart, uvicorn


def serve(
    retriever: TwoStageRetriever,
    settings: ServiceSettings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    grace: float = 10.0,
) -> None:
    """Serve a collection until SIGTERM or SIGINT; requests under way are answered first.

    Args:
        retriever: Which searches; it is closed at the end.
        settings: Keys and limits.
        host: Address to listen on.
        port: Likewise.
        grace: Seconds that requests under way have left when it is to end.

    Raises:
        MissingExtraError: The extra `web` is not installed.
    """
    check_installed()
    import uvicorn

    from edje_qdrant.web.app import create_app

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    for name in ("edje_qdrant", "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO)
    config = uvicorn.Config(
        create_app(retriever, settings),
        host=host,
        port=port,
        log_config=None,
        access_log=False,  # the guard writes it
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(grace)),
        ws="none",
    )
    with _told_only_once():
        uvicorn.Server(config).run()


@contextmanager
def _told_only_once() -> Iterator[None]:
    """Let a signal that the server has obeyed do no more: the server sends it again at its end."""
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: None) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
