"""Run the service with uvicorn until it is stopped."""

from __future__ import annotations

import errno
import json
import logging
import signal
import socket
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from edje_qdrant.errors import ConfigError, without_keys
from edje_qdrant.files import reason_of
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.web.installed import check_installed
from edje_qdrant.web.settings import ServiceSettings

if TYPE_CHECKING:
    from edje_qdrant.web.follow import Load

__all__ = ["JsonLines", "bound_sockets", "listen", "serve", "serve_app"]

_BACKLOG = 2048  # uvicorn's

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
    sockets: Sequence[socket.socket] | None = None,
) -> None:
    """Serve a collection until SIGTERM or SIGINT; finish the requests in progress first.

    Args:
        retriever: Answers the searches; closed at the end.
        settings: Keys and limits.
        follow: Opens what the collection's name stands for when it is called; see `create_app`.
        host: Address to listen on.
        port: Port to listen on.
        grace: Seconds for requests in progress to finish.
        sockets: From `bound_sockets`, in place of host and port.

    Raises:
        ConfigError: The address cannot be listened on.
        MissingExtraError: The extra `web` is not installed.
    """
    check_installed()
    from edje_qdrant.web.app import create_app

    bound = bound_sockets(host, port) if sockets is None else sockets
    serve_app(create_app(retriever, settings, follow=follow), sockets=bound, grace=grace)


def bound_sockets(host: str, port: int) -> list[socket.socket]:
    """Return sockets that are bound to an address and do not listen yet.

    Args:
        host: Name or address.
        port: Port; 0 for a free one.

    Raises:
        ConfigError: The port is in use or may not be used, or the host is not of this machine.
    """
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )  # a name may have several addresses
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host} is no name or address: {error}") from error
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sockets.append(opened := socket.socket(family, kind, protocol))
            if sys.platform != "win32":  # there it allows a second program on a port in use
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened.bind(address)
    except OSError as error:
        for opened in sockets:
            opened.close()
        raise _unusable(host, port, error) from error
    return sockets


def listen(sockets: Sequence[socket.socket]) -> int:
    """Listen on bound sockets; return the port. Connections wait until they are served.

    Raises:
        ConfigError: Another program has begun to listen there since they were bound.
    """
    host, port = sockets[0].getsockname()[:2]
    try:
        for opened in sockets:
            opened.listen(_BACKLOG)
    except OSError as error:
        raise _unusable(host, port, error) from error
    return int(port)


def _unusable(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {port} of {host} is in use by another program, maybe another service; stop it, "
            "or choose another port with --port"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ConfigError(
            f"port {port} of {host} may not be used by this user; choose one above 1023 with --port"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(
            f"{host} is no address of this machine; 127.0.0.1 listens to this machine alone, "
            "0.0.0.0 to its networks"
        )
    return ConfigError(f"port {port} of {host} cannot be listened on: {reason_of(error)}")


def serve_app(app: Any, *, sockets: Sequence[socket.socket], grace: float) -> None:
    """Serve an ASGI application until SIGTERM or SIGINT; logs go to stderr as lines of JSON.

    Args:
        app: The application.
        sockets: From `bound_sockets`; closed at the end.
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
        log_config=None,
        access_log=False,  # the middleware writes it
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(grace)),
        ws="none",
    )
    with _ignore_signals():
        uvicorn.Server(config).run(sockets=[*sockets])


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
