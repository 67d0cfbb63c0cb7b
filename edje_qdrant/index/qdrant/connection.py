"""Connection to Qdrant: clients, retries, and translation of errors."""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import RLock
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from edje_qdrant.errors import (
    CollectionNotFoundError,
    ConfigError,
    EngineUnavailableError,
    RateLimitedError,
    StoreError,
)

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient, QdrantClient

__all__ = ["Connection", "QdrantOptions"]

P = ParamSpec("P")
T = TypeVar("T")

_TRANSIENT_HTTP = frozenset({429, 502, 503, 504})
_TRANSIENT_GRPC = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"})
_HTTP_OF_GRPC = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
}
_LONGEST_PAUSE = 30.0
_PROBE_SECONDS = 2
# Channel options: gRPC would wait longer and longer, up to two minutes, before it connects again.
_CONNECT_AGAIN = {"grpc.initial_reconnect_backoff_ms": 500, "grpc.max_reconnect_backoff_ms": 1000}

# Deadline of the current call, in seconds of time.monotonic; one per thread or task.
_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


@dataclass(frozen=True, slots=True)
class QdrantOptions:
    """How to reach a Qdrant server; the first three do not apply to a client passed in.

    Attributes:
        api_key: Sent with every request.
        prefer_grpc: Use gRPC (port 6334). Writes of large batches are 1.2 to 1.4 times as fast as
            over REST; reads are about equally fast.
        timeout: Seconds to wait for each response.
        batch_size: Points in one request, at most; a request also stays below 16 MB.
        retries: Times to retry when the server is unreachable, slow or overloaded.
        backoff: Seconds before the first retry; doubled for each further one, plus or minus half.
        compress_reads: Let the server compress what it sends. Tokens can hardly be compressed, and
            compressing them takes a server longer than sending them over a fast network: set this
            for networks below 100 MB/s. A client passed in keeps its own settings; Qdrant's client
            asks for compression unless it is made with
            `metadata={"Accept-Encoding": "identity"}`, and for gRPC with
            `grpc_options={"grpc.compression_enabled_algorithms_bitset": 1}`.
    """

    api_key: str | None = field(default=None, repr=False)
    prefer_grpc: bool = False
    timeout: int = 30
    batch_size: int = 256
    retries: int = 4
    backoff: float = 0.5
    compress_reads: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.timeout, int | float):
            raise ConfigError(f"timeout is {self.timeout!r}; give seconds, 1 or more")
        if self.timeout < 1 or self.batch_size < 1 or self.retries < 0 or self.backoff < 0:
            raise ConfigError(
                f"timeout {self.timeout} and batch_size {self.batch_size} must be 1 or more, "
                f"retries {self.retries} and backoff {self.backoff} 0 or more"
            )


class Connection:
    """A client, with retries and translated errors.

    Attributes:
        client: The client.
        address: Its name in errors.
        is_local: Whether it keeps its data in this process (`:memory:`).
    """

    def __init__(self, location: str | QdrantClient, options: QdrantOptions) -> None:
        from qdrant_client import QdrantClient

        self._options = options
        self._owned = isinstance(location, str)
        self._closed = False
        # A client's connections belong to the event loop that opened them.
        self._async: WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = WeakKeyDictionary()
        self._for_probes: Connection | None = None
        self.client = _connect(location, options) if isinstance(location, str) else location
        if not isinstance(self.client, QdrantClient):
            raise ConfigError(f"location is a {type(location).__name__}; {_LOCATIONS}")
        given = self.client.init_options
        self.is_local = given["location"] == ":memory:" or given["path"] is not None
        self.address: str = _address(given)
        self._grpc = f" (gRPC: port {given['grpc_port']})" if given["prefer_grpc"] else ""
        key = options.api_key or given.get("api_key")
        self._secret = key.strip() if isinstance(key, str) else None
        # The client's local mode changes arrays in place, so calls must not run at the same time.
        self._lock = RLock() if self.is_local else nullcontext()

    def call(self, name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the client for the collection `name`; retry if that may help.

        Raises:
            EngineUnavailableError: The server did not respond, or was overloaded, at every try.
            RateLimitedError: It takes no more requests for now.
            CollectionNotFoundError: It has no such collection.
            ConfigError: It refused the request or the API key.
            StoreError: The connection is closed, or the server failed.
        """
        self.require_open(name)
        tries = 0
        while True:
            try:
                with self._lock:
                    return function(*args, **kwargs)
            except Exception as error:  # noqa: PERF203 - retries need a loop
                time.sleep(self._until_next_try(name, error, tries))
                tries += 1

    async def call_async(self, name: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """Await a method of the asynchronous client; otherwise like `call`.

        Raises:
            EngineUnavailableError: As `call`.
            CollectionNotFoundError: As `call`.
            ConfigError: As `call`.
            StoreError: As `call`.
        """
        self.require_open(name)
        loop = asyncio.get_running_loop()
        if loop not in self._async:
            self._async[loop] = self._new_async_client()
        tries = 0
        while True:
            try:
                return await getattr(self._async[loop], method)(*args, **kwargs)
            except Exception as error:  # noqa: PERF203 - retries need a loop
                await asyncio.sleep(self._until_next_try(name, error, tries))
                tries += 1

    @contextmanager
    def within(self, seconds: float | None) -> Iterator[dict[str, int]]:
        """Limit the time of the calls inside; yield the arguments that tell the server.

        The server and the client count in whole seconds, so a running call may take one more.

        Args:
            seconds: From now; None for no limit.
        """
        if seconds is None or self.is_local:
            yield {}
            return
        token = _deadline.set(time.monotonic() + seconds)
        try:
            yield {"timeout": max(1, math.ceil(seconds))}
        finally:
            _deadline.reset(token)

    def pause(self, tries: int, least: float = 0) -> None:
        """Wait before another try: longer each time, and for a random part of it.

        Args:
            tries: Failed tries before the last one.
            least: Seconds to wait at least; the maximum is 30.
        """
        time.sleep(self._pause(tries, least))

    def require_open(self, name: str) -> None:
        """Check that `close` was not called.

        Raises:
            StoreError: It was; names the collection.
        """
        if self._closed:
            raise StoreError(f"the collection {name!r} at {self.address} is closed; open it again")

    def known(self) -> tuple[str, ...]:
        """Return the names of the collections there; none if the server does not respond."""
        try:
            return tuple(sorted(c.name for c in self.client.get_collections().collections))
        except Exception:
            return ()

    def for_probes(self) -> Connection:
        """Return another connection to the same server, which waits 2 s and repeats no request."""
        from qdrant_client import QdrantClient

        if self._for_probes is None:
            given = {**self._settings(), "timeout": _PROBE_SECONDS}
            given["grpc_options"] = {**(given["grpc_options"] or {}), **_CONNECT_AGAIN}
            options = QdrantOptions(timeout=_PROBE_SECONDS, retries=0)
            self._for_probes = Connection(QdrantClient(**given), options)
        return self._for_probes

    def close(self) -> None:
        """Close the client, unless it was passed in; a second call does nothing."""
        if not self._closed and self._owned:
            self.client.close()
        if self._for_probes is not None:
            self._for_probes.client.close()
        self._closed = True

    def _pause(self, tries: int, least: float) -> float:
        seconds = self._options.backoff * 2.0**tries * random.uniform(0.5, 1.5)
        return min(max(seconds, least), _LONGEST_PAUSE)

    def _until_next_try(self, name: str, error: Exception, tries: int) -> float:
        """Return the seconds to wait before another try.

        Raises:
            EngineUnavailableError: No try is left, or no time for one.
            EdjeError: Another try would not help.
        """
        if not _is_transient(error):
            raise self._translate(name, error) from error
        wanted = _retry_after(error)
        seconds = self._pause(tries, wanted or 0)
        late = time.monotonic() + seconds > _deadline.get()
        if _is_rate_limit(error) and (late or tries == self._options.retries):
            raise RateLimitedError(
                f"Qdrant at {self.address}{self._grpc} takes no more requests for now "
                f"({self._words(error)}); "
                + ("try again later" if wanted is None else f"try again in {wanted:g} s"),
                location=self.address,
                retry_after=wanted,
            ) from error
        if late or tries == self._options.retries:
            raise EngineUnavailableError(
                f"no answer from Qdrant at {self.address}{self._grpc} after {tries + 1} tries"
                f"{', with no time left for more' if late else ''} "
                f"({self._words(error)}); check the address and that the server runs. "
                "What it acknowledged before is kept",
                location=self.address,
            ) from error
        return seconds

    def _words(self, error: Exception) -> str:
        details = getattr(error, "details", None)  # gRPC's own text has many lines
        text = str(details() if callable(details) else error) or type(error).__name__
        if self._secret:
            text = text.replace(self._secret, "***")
        return " ".join(text.split())

    def _new_async_client(self) -> AsyncQdrantClient:
        from qdrant_client import AsyncQdrantClient

        return AsyncQdrantClient(**self._settings())

    def _settings(self) -> dict[str, Any]:
        """Return the arguments with which the client was made."""
        given = {**self.client.init_options}
        given.update(given.pop("kwargs", None) or {})
        given["check_compatibility"] = False  # the client itself has done so if wanted
        if given.get("grpc_options"):  # the client added its own name, and warns of it
            given["grpc_options"] = {
                key: value
                for key, value in given["grpc_options"].items()
                if key != "grpc.primary_user_agent"
            }
        return given

    def _translate(self, name: str, error: Exception) -> Exception:
        status = getattr(error, "status_code", None) or _HTTP_OF_GRPC.get(_grpc_code(error))
        if status == 404 or (self.is_local and f"{name} not found" in str(error)):
            return CollectionNotFoundError(self.address, name, self.known())
        if status in (401, 403):
            return ConfigError(
                f"Qdrant at {self.address} refused the API key ({status}); "
                "give one that may read and write this collection"
            )
        if status in (400, 422) or isinstance(error, ValueError):
            return ConfigError(
                f"Qdrant at {self.address} refused a request about {name!r}: {self._words(error)}"
            )
        return StoreError(
            f"Qdrant at {self.address} failed on {name!r}: {self._words(error)}; "
            "see the server's log"
        )


_LOCATIONS = 'give "http://host:6333", "https://...", ":memory:" or a QdrantClient'


def _connect(location: str, options: QdrantOptions) -> QdrantClient:
    from qdrant_client import QdrantClient

    if location == ":memory:":
        return QdrantClient(":memory:")
    if not location.startswith(("http://", "https://")):
        raise ConfigError(f"location is {location!r}; {_LOCATIONS}")
    try:
        parts = urlsplit(location)
    except ValueError as error:
        raise ConfigError(f"location {location!r} is no address: {error}; {_LOCATIONS}") from error
    if "@" in location or parts.query or parts.fragment:
        # Qdrant's client would leave them out.
        rest = location.partition("://")[2].rpartition("@")[2]
        host = re.split(r"[/?#]", rest)[0]
        raise ConfigError(
            f"the address of {host} holds more than a host, a port and a path; give a key as "
            "api_key, or to a command in EDJE_QDRANT_API_KEY"
        )
    try:
        return QdrantClient(
            url=location,
            api_key=options.api_key,
            prefer_grpc=options.prefer_grpc,
            timeout=options.timeout,
            check_compatibility=False,  # it warns from a thread; `open` checks what is needed
            **({"grpc_options": {**_CONNECT_AGAIN}} if options.compress_reads else _uncompressed()),
        )
    except ValueError as error:
        raise ConfigError(f"location {location!r} is no address: {error}; {_LOCATIONS}") from error


def _uncompressed() -> dict[str, Any]:
    """Return the client's arguments that keep a server from compressing over REST and gRPC."""
    return {
        "metadata": {"Accept-Encoding": "identity"},  # headers of REST requests only
        # A bit for each algorithm; the lowest is for no compression.
        "grpc_options": {"grpc.compression_enabled_algorithms_bitset": 1, **_CONNECT_AGAIN},
    }


def _address(given: Mapping[str, Any]) -> str:
    """Return the address that a client with these options asks, its port always named."""
    if given["location"] == ":memory:" or given["path"] is not None:
        return str(given["path"] or given["location"])
    url = given["url"] or given["location"]
    if url:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        scheme, host, port, path = parts.scheme, parts.hostname, parts.port, parts.path
    else:
        scheme = "https" if given["https"] else ""
        host, port, path = given["host"] or "localhost", None, ""
    host = f"[{host}]" if host and ":" in host else host
    shown = f"{scheme}://" if scheme else ""
    shown += f"{host}:{port or given['port']}{(path or given['prefix'] or '').rstrip('/')}"
    return shown


def _is_transient(error: Exception) -> bool:
    from httpx import TransportError, UnsupportedProtocol
    from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

    if isinstance(error, ResponseHandlingException):
        source = error.source
        return isinstance(source, TransportError) and not isinstance(source, UnsupportedProtocol)
    if isinstance(error, UnexpectedResponse):
        return error.status_code in _TRANSIENT_HTTP
    return isinstance(error, ResourceExhaustedResponse) or _grpc_code(error) in _TRANSIENT_GRPC


def _is_rate_limit(error: Exception) -> bool:
    from qdrant_client.common.client_exceptions import ResourceExhaustedResponse

    return (
        isinstance(error, ResourceExhaustedResponse)
        or getattr(error, "status_code", None) == 429
        or _grpc_code(error) == "RESOURCE_EXHAUSTED"
    )


def _retry_after(error: Exception) -> float | None:
    """Return the seconds that a server asks to wait; None if it names none."""
    seconds = getattr(error, "retry_after_s", None)
    return None if seconds is None else float(seconds)


def _grpc_code(error: Exception) -> str:
    """Return the status name of a gRPC error, or an empty string for any other error."""
    code = getattr(error, "code", None)
    return str(getattr(code(), "name", "")) if callable(code) else ""
