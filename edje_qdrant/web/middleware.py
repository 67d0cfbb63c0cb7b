"""ASGI middleware: authentication, request limits, timeouts, access log."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edje_qdrant.web.errors import RequestError, error_response
from edje_qdrant.web.metrics import Metrics
from edje_qdrant.web.settings import ServiceSettings

__all__ = ["IMAGE_JSON_PATHS", "UPLOAD_PATHS", "ServiceMiddleware"]

_log = logging.getLogger("edje_qdrant.web")

#: Paths whose request bodies may hold images.
UPLOAD_PATHS = frozenset({"/v1/search/image", "/v1/ingest"})

#: Paths whose JSON bodies may hold images; larger ones count as uploads.
IMAGE_JSON_PATHS = frozenset({"/v1/rerank", "/rerank", "/v2/rerank", "/v1/embeddings"})

# Paths without a key: they reveal nothing about the collection.
_OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/openapi.json", "/favicon.ico"})
_OPEN_FOLDER = "/static/"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MOST_REQUESTS, _MOST_UPLOADS = 256, 8
_MOST_DIGITS = 18
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class ServiceMiddleware:
    """Check every request before the routes; log and count it.

    Args:
        app: The wrapped application.
        settings: Keys and limits.
        metrics: Counts every request.
    """

    def __init__(self, app: ASGIApp, *, settings: ServiceSettings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._keys = [_digest(key) for key in settings.api_keys]
        self._requests = self._uploads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["request_id"] = request_id
        status = 0

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["X-Request-ID"] = request_id
                for name, value in _HEADERS.items():
                    answer.setdefault(name, value)
                if scope["path"].startswith("/v1/") or scope["path"] in IMAGE_JSON_PATHS:
                    answer.setdefault("Cache-Control", "no-store")
            await send(message)

        upload = self._is_upload(scope, headers)
        most = self._settings.max_upload_bytes if upload else self._settings.max_body_bytes
        self._requests += 1
        self._uploads += upload
        self._metrics.under_way.inc()
        try:
            error = self._check(scope, headers, most)
            if error is None:
                body = _Body(receive, most, self._settings.timeout)
                await self._app(scope, body.receive, reply)
            else:
                await _send_error(error, request_id, scope, receive, reply)
        except Exception:
            _log.exception("request failed", extra={"request_id": request_id})
            if status:
                raise
            error = RequestError(
                500, "InternalError", "internal error; the server's log has the details"
            )
            await _send_error(error, request_id, scope, receive, reply)
        finally:
            self._requests -= 1
            self._uploads -= upload
            self._metrics.under_way.dec()
            seconds = time.perf_counter() - started
            route = _route(scope)
            self._metrics.request(_method(scope), route, status, seconds)
            # Queries and keys are not logged.
            fields = {
                "request_id": request_id,
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(1000 * seconds, 1),
                "client": (scope.get("client") or ("",))[0],
            }
            _log.info("request", extra=fields)

    def _check(self, scope: Scope, headers: Headers, most: int) -> RequestError | None:
        """Return the error of a request whose head fails a check, else None."""
        if not self._known_host(headers):
            return RequestError(
                421, "UnknownHost", "unknown host name; start the service with --allow-host NAME"
            )
        if scope["method"] not in _SAFE_METHODS and not self._known_origin(headers):
            return RequestError(
                403,
                "ForeignOrigin",
                "requests from pages of other origins are not allowed; see --cors",
            )
        if self._keys and not _is_open(scope["path"]) and not self._knows_key(headers):
            return RequestError(
                401,
                "Unauthorized",
                "missing or wrong key; send Authorization: Bearer KEY",
                {"WWW-Authenticate": "Bearer"},
            )
        too_many = self._requests > _MOST_REQUESTS or self._uploads > _MOST_UPLOADS
        if too_many and not _is_open(scope["path"]):
            return RequestError(
                503, "Busy", "too many requests at once; try again", {"Retry-After": "1"}
            )
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            return RequestError(400, "BadRequest", "Content-Length is not a number")
        # Python refuses to convert thousands of digits.
        if len(length) > _MOST_DIGITS or int(length) > most:
            return _too_large(most)
        return None

    def _is_upload(self, scope: Scope, headers: Headers) -> bool:
        """Return whether a request may be as large as uploads, of which few are read at a time."""
        if scope["path"] in UPLOAD_PATHS:
            return True
        if scope["path"] not in IMAGE_JSON_PATHS or scope["method"] != "POST":
            return False
        length = headers.get("content-length", "")
        small = length.isascii() and length.isdigit() and len(length) <= _MOST_DIGITS
        return not small or int(length) > self._settings.max_body_bytes

    def _known_host(self, headers: Headers) -> bool:
        allowed = self._settings.allowed_hosts
        return allowed is None or _host_name(headers.get("host", "")) in allowed

    def _known_origin(self, headers: Headers) -> bool:
        """Return whether the request is from an allowed origin, or not from a browser."""
        origin = headers.get("origin")
        if origin is None or origin in self._settings.cors_origins:
            return True
        if "*" in self._settings.cors_origins:
            return True
        try:
            return urlsplit(origin).netloc == headers.get("host", "")
        except ValueError:  # not an address
            return False

    def _knows_key(self, headers: Headers) -> bool:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        key = bearer if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        given = _digest(key.strip())
        matches = [hmac.compare_digest(given, known) for known in self._keys]
        return any(matches)  # all keys are compared, so the time reveals nothing


class _Body:
    """Request body that raises once it is too large or too slow."""

    def __init__(self, receive: Receive, most: int, seconds: float) -> None:
        self._receive, self._most = receive, most
        self._until = time.monotonic() + seconds
        self._size, self._whole = 0, False

    async def receive(self) -> Message:
        if self._whole:  # only the disconnect message is left
            return await self._receive()
        try:
            left = self._until - time.monotonic()
            message = await asyncio.wait_for(self._receive(), max(left, 0.001))
        except asyncio.TimeoutError as error:
            raise RequestError(
                408, "Timeout", "the request's body did not arrive in time"
            ) from error
        if message["type"] != "http.request":
            self._whole = True
            return message
        self._size += len(message.get("body", b""))
        if self._size > self._most:
            raise _too_large(self._most)
        self._whole = not message.get("more_body", False)
        return message


def _too_large(most: int) -> RequestError:
    # Close the connection: the unread rest of the body would be read as the next request.
    return RequestError(
        413, "TooLarge", f"the body has more than {most:,} bytes", {"Connection": "close"}
    )


async def _send_error(
    error: RequestError, request_id: str, scope: Scope, receive: Receive, send: Send
) -> None:
    response = error_response(
        error.status_code, error.error, str(error.detail), request_id, error.headers
    )
    await response(scope, receive, send)


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER)


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _method(scope: Scope) -> str:
    known: Sequence[str] = ("GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH")
    return scope["method"] if scope["method"] in known else "other"


def _route(scope: Scope) -> str:
    """Return the route's template; raw paths would make an unbounded number of labels."""
    path: Any = getattr(scope.get("route"), "path", None)
    if isinstance(path, str):
        return path
    return "/static" if scope["path"].startswith(_OPEN_FOLDER) else "other"
