"""What the errors of Qdrant's client mean, and what the server said."""

from __future__ import annotations

import json
import re
import socket
import ssl
from asyncio import TimeoutError as AsyncTimeoutError  # another class before Python 3.11
from contextlib import suppress
from typing import Any, NamedTuple

from edje_qdrant.text import printable

__all__ = [
    "Spoken",
    "certificate_problem",
    "is_another_program",
    "is_away",
    "is_from_cluster",
    "is_from_qdrant",
    "is_missing_collection",
    "is_rate_limit",
    "may_speak_otherwise",
    "refusal",
    "retry_after",
    "says",
    "spoken_at",
    "status_of",
]

# 408: the server's own time limit of a request.
_TRANSIENT_HTTP = frozenset({408, 429, 502, 503, 504})
_TRANSIENT_GRPC = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"})
_HTTP_OF_GRPC = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
}

# What a node says, with status 500 or INTERNAL, when others of its cluster do not answer it.
_NODE_AWAY = re.compile(
    r"service is currently unavailable|Waiting for consensus|leader is not established"
    r"|Tonic status error.*(?:Unavailable|deadline|timed? ?out|transport error)"
    r"|tcp connect error|transport error|enough active replicas"
    r"|Consistency of this update is not guaranteed",
    re.IGNORECASE | re.DOTALL,
)
_FAILURES = ("INTERNAL", "UNAVAILABLE", "UNKNOWN")
# How a gRPC connection ends when the server does.
_CUT = re.compile(r"RST_STREAM|Socket closed|Stream removed|GOAWAY|Connection reset")

_LONGEST_TEXT = 300


def is_away(error: Exception) -> bool:
    """Return whether a request failed because a server, or a node, is away or overloaded."""
    from httpx import TransportError, UnsupportedProtocol
    from qdrant_client.http.exceptions import ResponseHandlingException

    if isinstance(error, ResponseHandlingException):
        source = error.source
        return isinstance(source, TransportError) and not isinstance(source, UnsupportedProtocol)
    if (
        isinstance(error, TimeoutError | AsyncTimeoutError)
        or is_rate_limit(error)
        or is_from_cluster(error)
    ):
        return True
    if getattr(error, "status_code", None) in _TRANSIENT_HTTP:
        return True
    code = _grpc_code(error)
    if code in ("INTERNAL", "UNKNOWN", "CANCELLED"):
        return bool(_CUT.search(says(error)))
    return code in _TRANSIENT_GRPC


def is_from_cluster(error: Exception) -> bool:
    """Return whether a node answered that others of its cluster do not answer it."""
    is_failure = status_of(error) in (500, 503) or _grpc_code(error) in _FAILURES
    return is_failure and bool(_NODE_AWAY.search(says(error)))


def is_rate_limit(error: Exception) -> bool:
    """Return whether a server takes no more requests for now."""
    from qdrant_client.common.client_exceptions import QdrantException

    return (
        # The base class: with a `Retry-After` that is no number.
        isinstance(error, QdrantException)
        or getattr(error, "status_code", None) == 429
        or _grpc_code(error) == "RESOURCE_EXHAUSTED"
    )


def retry_after(error: Exception) -> float | None:
    """Return the seconds that a server asks to wait; None if it names none."""
    seconds = getattr(error, "retry_after_s", None)
    return None if seconds is None else float(seconds)


def status_of(error: Exception) -> int | None:
    """Return the HTTP status of an answer, also for one over gRPC; None without an answer."""
    return getattr(error, "status_code", None) or _HTTP_OF_GRPC.get(_grpc_code(error))


def says(error: Exception) -> str:
    """Return the server's own sentence, or else what went wrong, on one line."""
    if isinstance(error, json.JSONDecodeError):
        return "its answer is not JSON"
    content = getattr(error, "content", None)
    details = getattr(error, "details", None)  # gRPC's own text has many lines
    if isinstance(content, bytes):
        reason = f"{getattr(error, 'status_code', '')} {getattr(error, 'reason_phrase', '')}"
        text = _sentence(content) or reason.strip()
    else:
        text = str(details() if callable(details) else error)
    return printable(" ".join(text.split())) or type(error).__name__


def _sentence(content: bytes) -> str:
    """Return what the body of an answer says: Qdrant's JSON, a proxy's JSON, HTML or text."""
    text = content.decode(errors="replace").strip()
    try:
        body: Any = json.loads(text)
    except ValueError:
        title = re.search(r"<title>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
        if title is not None:
            return title[1]
        if text.startswith("<"):
            return ""
        return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]} ..."
    if isinstance(body, dict):
        status = body.get("status")
        if isinstance(status, dict):
            body = status
        for key in ("error", "message", "detail"):
            if isinstance(body.get(key), str):
                return str(body[key])
    return ""


def is_from_qdrant(error: Exception) -> bool:
    """Return whether an answer has the form of Qdrant's."""
    content = getattr(error, "content", None)
    if not isinstance(content, bytes):
        return _grpc_code(error) in _HTTP_OF_GRPC
    try:
        body: Any = json.loads(content)
    except ValueError:
        return False
    return isinstance(body, dict) and isinstance(body.get("status"), dict)


def is_another_program(error: Exception) -> bool:
    """Return whether an answer has not the form of Qdrant's."""
    from qdrant_client.http.exceptions import ResponseHandlingException

    if isinstance(error, json.JSONDecodeError):
        return True
    if isinstance(error, ResponseHandlingException):
        return "Invalid JSON" in str(error)
    is_answer = isinstance(getattr(error, "content", None), bytes)
    return _grpc_code(error) == "UNIMPLEMENTED" or (is_answer and not is_from_qdrant(error))


def is_missing_collection(error: Exception) -> bool:
    """Return whether a server has no collection of that name."""
    return bool(re.search(r"Collection .*(doesn't exist|not found)", says(error)))


_REFUSALS = (
    (r"must provide an api key", "no key was sent"),
    (r"expired", "the token has expired"),
    (r"invalid api key|invalidsignature|invalid jwt", "the key is not one of the server's"),
    (r"(?:write|manage) access", "the key may not do this"),
    (r"access to collection", "the key is not for this collection"),
)


def refusal(error: Exception, name: str, *, writes: bool) -> str:
    """Return why a server refused a key (401, 403), and which key would do.

    Args:
        error: The client's error.
        name: Name of the collection.
        writes: Whether the refused request would have changed something.
    """
    said = says(error)
    reason = next((f": {why}" for text, why in _REFUSALS if re.search(text, said, re.I)), "")
    if re.search("locked", said, re.I):  # also 403: writes are locked for every key
        return f"{said}; unlock the server's writes"
    right = (
        f"may write to {name!r} (searching needs only the right to read)"
        if writes
        else f"may read {name!r}"
    )
    return (
        f"{said}{reason}; give an API key that {right} as api_key, or to a command in "
        "EDJE_QDRANT_API_KEY"
    )


def certificate_problem(error: Exception) -> str | None:
    """Return why a server's certificate is not trusted; None if that is not the failure."""
    text = says(error)
    if "CERTIFICATE_VERIFY_FAILED" not in text:
        return None
    reason = re.search(r"verify.failed: ([^(:]+)", text, re.IGNORECASE)
    return reason[1].strip() if reason else "it cannot be verified"


_REFUSED = re.compile(
    r"refused|unreachable|timed? ?out|Deadline|name resolution|not known|DNS", re.IGNORECASE
)


def may_speak_otherwise(error: Exception) -> bool:
    """Return whether something answered, but not as expected: another protocol, perhaps."""
    from httpx import TransportError
    from qdrant_client.http.exceptions import ResponseHandlingException

    source = error.source if isinstance(error, ResponseHandlingException) else None
    if isinstance(source, TransportError) or _grpc_code(error) in ("UNAVAILABLE", "INTERNAL"):
        return not _REFUSED.search(says(error)) or "http1" in says(error)
    return getattr(error, "status_code", None) == 400 and not is_from_qdrant(error)


class Spoken(NamedTuple):
    """What is spoken at a port: with TLS or not, gRPC (HTTP/2) or REST."""

    tls: bool
    grpc: bool


# What a client says first: of HTTP/2, with an empty frame of settings, and of HTTP/1.
_GREETINGS = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0",
    b"GET / HTTP/1.0\r\n\r\n",
)


def spoken_at(host: str, port: int, seconds: float = 1.0) -> Spoken | None:
    """Find out what is spoken at a port; None if that is not clear.

    Args:
        host: Name or address.
        port: Port.
        seconds: To wait for each answer.
    """
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent but a greeting
    context.set_alpn_protocols(["h2", "http/1.1"])
    for tls in (False, True):
        for greeting in _GREETINGS:
            with (
                suppress(OSError, ValueError),
                socket.create_connection((host, port), seconds) as plain,
            ):
                plain.settimeout(seconds)
                if not tls:
                    is_grpc = _answers_as_grpc(plain, greeting)
                else:
                    with context.wrap_socket(plain, server_hostname=host) as stream:
                        is_grpc = _answers_as_grpc(stream, greeting)
                if is_grpc is not None:
                    return Spoken(tls, is_grpc)
    return None


def _answers_as_grpc(stream: socket.socket, greeting: bytes) -> bool | None:
    """Greet a server; return whether it answers as gRPC does, None if that is not clear."""
    with suppress(OSError):
        stream.sendall(greeting)
        began = stream.recv(9)
        if began[:1] == b"\0" and began[3:4] == b"\4":  # a frame of settings
            return True
        if began and began.isascii() and began.decode().isprintable():  # "HTTP/1.1 " or HTML
            return False
    return None


def _grpc_code(error: Exception) -> str:
    """Return the status name of a gRPC error, or an empty string for any other error."""
    code = getattr(error, "code", None)
    return str(getattr(code(), "name", "")) if callable(code) else ""
