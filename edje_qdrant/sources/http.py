"""Objects of HTTP servers, by httpx."""

from __future__ import annotations

import atexit
import email.utils
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

import httpx

from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.index.moments import moment_text
from edje_qdrant.sources.remote_store import (
    AwayError,
    RemoteObject,
    RemoteStore,
    reason_of,
    too_large,
)
from edje_qdrant.sources.uris import without_secrets
from edje_qdrant.version import __version__

__all__ = ["HttpStore"]

_MOST_REDIRECTS = 5
# Seconds to connect, between two pieces of an answer, and of one answer in total.
_CONNECT, _PIECE, _TOTAL = 10.0, 30.0, 300.0
_CONNECTIONS = 32
# Answers that may be others in a moment.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_MEANINGS = {
    401: "its server asks for a login",
    403: "its server refuses it",
    404: "there is nothing at this address",
    410: "it was removed from its server",
}


class HttpStore(RemoteStore):
    """Read objects by http and https."""

    def __init__(self) -> None:
        # Not compressed: a compressed body could grow without bound, and has no sizes.
        headers = {"Accept-Encoding": "identity", "User-Agent": f"edje-qdrant/{__version__}"}
        self._client = httpx.Client(
            follow_redirects=True,
            max_redirects=_MOST_REDIRECTS,
            timeout=httpx.Timeout(_PIECE, connect=_CONNECT),
            limits=httpx.Limits(max_connections=_CONNECTIONS),
            headers=headers,
        )
        atexit.register(self._client.close)

    def about(self, uri: str) -> RemoteObject:
        """Return what the answer to HEAD says; of servers that refuse HEAD, that to GET."""
        for method in ("HEAD", "GET"):
            with self._answer(method, uri, {}) as answer:
                if answer.status_code in (405, 501) and method == "HEAD":
                    continue
                _check(answer, uri)
                return RemoteObject(uri, _length(answer), _stamp(answer))
        raise AssertionError("unreachable")

    def read(
        self, uri: str, start: int | None, end: int | None, max_bytes: int
    ) -> tuple[bytes, Mapping[str, Any]]:
        """Return the body of the answer to GET."""
        headers = {} if start is None or end is None else {"Range": f"bytes={start}-{end - 1}"}
        with self._answer("GET", uri, headers) as answer:
            _check(answer, uri)
            if headers and answer.status_code != 206:
                raise ImageReadError(
                    uri, "its server sends no parts of files (Range); download it first"
                )
            if (length := _length(answer) or 0) > max_bytes:
                raise too_large(uri, length, max_bytes)
            until = time.monotonic() + _TOTAL
            body = bytearray()
            for piece in answer.iter_raw():
                body += piece
                if len(body) > max_bytes:
                    raise too_large(uri, len(body), max_bytes)
                if time.monotonic() > until:
                    raise AwayError(f"it took more than {_TOTAL:g} s")
            return bytes(body), _stamp(answer)

    def objects(self, prefix: str) -> list[RemoteObject]:
        """Refuse to list, as HTTP has no lists."""
        raise ConfigError(
            f"{without_secrets(prefix)} cannot be listed, as HTTP has no folders; give the address "
            "of one image, or of a .jsonl or .txt file with the addresses of images"
        )

    @contextmanager
    def _answer(self, method: str, uri: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        try:
            with self._client.stream(method, uri.partition("#")[0], headers=headers) as answer:
                yield answer
        except httpx.TooManyRedirects as error:
            reason = f"its address has more than {_MOST_REDIRECTS} redirects"
            raise ImageReadError(uri, reason) from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ImageReadError(uri, f"no address of http: {reason_of(error)}") from error
        except httpx.HTTPError as error:
            raise AwayError(reason_of(error)) from error


def _check(answer: httpx.Response, uri: str) -> None:
    """Check an answer's status.

    Raises:
        AwayError: It may pass.
        ImageReadError: It will not.
    """
    status = answer.status_code
    if status in _PASSING:
        raise AwayError(f"HTTP status {status}", _pause(answer))
    if status not in (200, 206):
        meaning = _MEANINGS.get(status, "its server does not send it")
        raise ImageReadError(uri, f"{meaning} (HTTP status {status})")


def _pause(answer: httpx.Response) -> float | None:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else None


def _length(answer: httpx.Response) -> int | None:
    text = answer.headers.get("content-length", "")
    compressed = answer.headers.get("content-encoding", "identity").lower() != "identity"
    known = text.isascii() and text.isdigit() and len(text) < 19 and not compressed
    return int(text) if known else None


def _stamp(answer: httpx.Response) -> Mapping[str, Any]:
    if etag := answer.headers.get("etag"):
        return {"etag": etag}
    total = answer.headers.get("content-range", "").rpartition("/")[2]
    size = int(total) if total.isdigit() else _length(answer)
    try:
        changed = email.utils.parsedate_to_datetime(answer.headers.get("last-modified", ""))
        moment = moment_text(datetime.fromtimestamp(changed.timestamp(), timezone.utc))
    except (TypeError, ValueError, OverflowError):
        return {}
    return {} if size is None else {"file_size": size, "modified_at": moment}
