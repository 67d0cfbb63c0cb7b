"""Connection to Qdrant: clients, retries, and translation of errors."""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from threading import Event, Lock, RLock
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from edje_qdrant.errors import (
    CollectionNotFoundError,
    ConfigError,
    EdjeError,
    EngineUnavailableError,
    KeyRefusedError,
    RateLimitedError,
    StoreError,
)
from edje_qdrant.index.qdrant import failures
from edje_qdrant.index.qdrant.patience import Patience, TimeLimit, call_within, current_limit

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient, QdrantClient

__all__ = ["Connection", "QdrantOptions"]

P = ParamSpec("P")
T = TypeVar("T")

_LONGEST_PAUSE = 5.0  # seconds between two tries
_PROBE_SECONDS = 2
# Channel options: gRPC would wait longer and longer, up to two minutes, before it connects again.
_CONNECT_AGAIN = {"grpc.initial_reconnect_backoff_ms": 500, "grpc.max_reconnect_backoff_ms": 1000}

# What the client's methods that change nothing are called.
_READS = ("collection_exists", "count", "get_", "info", "query", "retrieve", "scroll")

_REST_PORT, _GRPC_PORT = 6333, 6334


@dataclass(frozen=True, slots=True)
class QdrantOptions:
    """How to reach a Qdrant server; the first three do not apply to a client passed in.

    Attributes:
        api_key: Sent with every request.
        prefer_grpc: Use gRPC (port 6334). Writes of large batches are 1.2 to 1.4 times as fast as
            over REST; reads are about equally fast.
        grpc_port: Port of gRPC; 6334 by default if the address names no port, or 6333. With any
            other port it has to be given.
        timeout: Seconds to wait for each response, and for all responses of one search together,
            with retries and pauses.
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
    grpc_port: int | None = None
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
        port = self.grpc_port
        if port is None:
            return
        if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
            raise ConfigError(f"grpc_port is {port!r}; give a port, 1 to 65535")
        if not self.prefer_grpc:
            raise ConfigError(
                f"grpc_port is {port}, but gRPC is not asked for; give prefer_grpc=True (--grpc) "
                "too, or leave grpc_port out"
            )


@dataclass(slots=True)
class _Call:
    """A call of a method of the client.

    Attributes:
        name: The collection.
        method: The method.
        tries: Failed tries.
        began: When it began, by `time.monotonic`.
    """

    name: str
    method: str
    tries: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def writes(self) -> bool:
        """Return whether it may change something."""
        return not self.method.startswith(_READS)


class Connection:
    """A client, with retries, time limits and translated errors.

    Attributes:
        client: The client.
        address: Its name in errors.
        is_local: Whether it keeps its data in this process (`:memory:`).
        alias: The name by which the collection was opened, if it is an alias; for errors.
    """

    alias: str | None = None

    def __init__(self, location: str | QdrantClient, options: QdrantOptions) -> None:
        from qdrant_client import QdrantClient

        self._options = options
        self._owned = isinstance(location, str)
        self._closed = False
        self._because: Callable[[], EdjeError] | None = None
        # A client's connections belong to the event loop that opened them.
        self._async: WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = WeakKeyDictionary()
        self._for_probes: Connection | None = None
        self._probes_lock = Lock()
        self._away: Event | None = None
        self._failed: Callable[[], None] = lambda: None
        self.client = _connect(location, options) if isinstance(location, str) else location
        if not isinstance(self.client, QdrantClient):
            raise ConfigError(f"location is a {type(location).__name__}; {_LOCATIONS}")
        given = self.client.init_options
        self.is_local = given["location"] == ":memory:" or given["path"] is not None
        self.address: str = _address(given)
        self._grpc_port: int | None = given["grpc_port"] if given["prefer_grpc"] else None
        self._grpc = f" (gRPC: port {self._grpc_port})" if self._grpc_port else ""
        key = options.api_key or given.get("api_key")
        self._secret = key.strip() if isinstance(key, str) else None
        # The client's local mode changes arrays in place, so calls must not run at the same time.
        self._lock = RLock() if self.is_local else nullcontext()
        self._patience: Patience | None = None
        self._patient_jobs = 0
        self._jobs_lock = Lock()
        # Once Qdrant has answered, the address is right.
        self._was_answered = self.is_local

    def call(self, name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the client for the collection `name`; retry if that may help.

        Retries and pauses included, the call ends with the `limit` around it, if there is one.
        Without one, and inside `patient`, it waits for a server that is away.

        Raises:
            EngineUnavailableError: The server, or a node of its cluster, did not respond, or was
                overloaded, at every try.
            RateLimitedError: It takes no more requests for now.
            CollectionNotFoundError: It has no such collection.
            ConfigError: It refused the request or the API key, or is no Qdrant server.
            StoreError: The connection is closed, or the server failed.
        """
        self.require_open(name)
        call = _Call(name, getattr(function, "__name__", ""))
        limit = None if self.is_local else current_limit()
        while True:
            started = time.monotonic()
            try:
                with self._lock:
                    if limit is None and (self._away is None or call.writes):
                        answer = function(*args, **kwargs)
                    else:
                        left = math.inf if limit is None else limit.require_left()
                        answer = call_within(left, lambda: function(*args, **kwargs), self._away)
            except Exception as error:
                pause = self._until_next_try(call, error, started, limit)
                if not self._wait(pause, limit):
                    raise self._unavailable(call, error) from error
            else:
                self._answered(started, limit)
                return answer

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
        function = getattr(self._async[loop], method)
        call = _Call(name, method)
        limit = current_limit()
        while True:
            started = time.monotonic()
            try:
                seconds = None if limit is None else limit.require_left()
                answer = await asyncio.wait_for(function(*args, **kwargs), seconds)
            except Exception as error:
                # Its first failure may look at the port, which takes a moment.
                pause = await asyncio.to_thread(self._until_next_try, call, error, started, limit)
                await asyncio.sleep(pause)
            else:
                self._answered(started, limit)
                return answer

    def limit(
        self,
        seconds: float | None = None,
        queries: int = 1,
        left: Callable[[], float] | None = None,
    ) -> AbstractContextManager[Any]:
        """Return a limit of the seconds that the calls inside take together; see `TimeLimit`.

        Args:
            seconds: `timeout` of the options by default, and at most.
            queries: Searches that share the calls.
            left: Returns the seconds left by another clock.
        """
        if self.is_local:
            return nullcontext()
        most = self._options.timeout
        return TimeLimit(most if seconds is None else min(seconds, most), queries, left)

    @contextmanager
    def within(self, seconds: float | None) -> Iterator[dict[str, int]]:
        """Limit the time of the calls inside; yield the arguments that tell the server.

        The server counts in whole seconds.

        Args:
            seconds: From now; None for no limit.
        """
        if seconds is None or self.is_local:
            yield {}
            return
        with TimeLimit(seconds):
            yield {"timeout": max(1, math.ceil(seconds))}

    @contextmanager
    def patient(self, seconds: float) -> Iterator[None]:
        """Let the calls of every thread wait for a server that is away; tell it on the screen.

        Args:
            seconds: To wait at most, from the first failure until the next answer; inside another
                job on this connection, that one's.
        """
        with self._jobs_lock:
            if not self._patient_jobs:
                self._patience = Patience(seconds, f"{self.address}{self._grpc}")
            self._patient_jobs += 1
        try:
            yield
        finally:
            with self._jobs_lock:
                self._patient_jobs -= 1
                if not self._patient_jobs:
                    self._patience = None

    def give_up(self) -> None:
        """End the waiting of every thread inside `patient`, as the job has ended."""
        patience = self._patience
        if patience is not None:
            patience.give_up()

    def _wait(self, seconds: float, limit: TimeLimit | None) -> bool:
        """Wait before another try; return whether there is to be one."""
        patience = self._patience if limit is None else None
        if patience is not None:
            patience.pause(seconds)
        elif self._away is not None:
            return not self._away.wait(seconds)
        else:
            time.sleep(seconds)
        return True

    def pause(self, tries: int) -> None:
        """Wait before another try: longer each time, and for a random part of it.

        Args:
            tries: Failed tries before the last one.
        """
        time.sleep(self._pause(tries))

    def require_open(self, name: str) -> None:
        """Check that `close` was not called.

        Raises:
            StoreError: It was; names the collection.
        """
        if self._closed:
            if self._because is not None:
                raise self._because()
            raise StoreError(f"the collection {name!r} at {self.address} is closed; open it again")

    def known(self) -> tuple[str, ...]:
        """Return the names of the collections there; none if the server does not respond."""
        try:
            return tuple(sorted(c.name for c in self.client.get_collections().collections))
        except Exception:
            return ()

    def give_up_when(self, away: Event, failed: Callable[[], None]) -> None:
        """End waits of calls for the server, and do not repeat them, while an event is set.

        A write is waited for, but not repeated. Asynchronous calls are left as they are.

        Args:
            away: The event.
            failed: Called from the thread of a call when the server did not answer it.
        """
        self._away, self._failed = away, failed

    def for_probes(self) -> Connection:
        """Return another connection to the same server, which waits 2 s and repeats no request."""
        from qdrant_client import QdrantClient

        with self._probes_lock:
            if self._for_probes is None:
                given = {**self._settings(), "timeout": _PROBE_SECONDS}
                given["grpc_options"] = {**(given["grpc_options"] or {}), **_CONNECT_AGAIN}
                options = QdrantOptions(timeout=_PROBE_SECONDS, retries=0)
                self._for_probes = Connection(QdrantClient(**given), options)
                self._for_probes.alias = self.alias
            return self._for_probes

    def close(self, because: Callable[[], EdjeError] | None = None) -> None:
        """Close the client, unless it was passed in; a second call does nothing.

        Args:
            because: Returns what later calls raise; by default that it is closed.
        """
        if not self._closed:
            self._because = because
        if not self._closed and self._owned:
            self.client.close()
        if self._for_probes is not None:
            self._for_probes.client.close()
        self._closed = True

    def _pause(self, tries: int) -> float:
        seconds = self._options.backoff * 2.0 ** min(tries, 16) * random.uniform(0.5, 1.5)
        return min(seconds, _LONGEST_PAUSE)

    def _answered(self, started: float, limit: TimeLimit | None) -> None:
        self._was_answered = True
        if limit is not None:
            limit.spend(time.monotonic() - started, answered=True)
        if self._patience is not None:
            self._patience.answered()

    def _until_next_try(
        self, call: _Call, error: Exception, started: float, limit: TimeLimit | None
    ) -> float:
        """Return the seconds to wait before another try, and count it.

        Args:
            call: What failed.
            error: How.
            started: When this try began.
            limit: Of the call.

        Raises:
            EngineUnavailableError: No try is left, or no time for one.
            RateLimitedError: The server takes no more requests for now, and asks to wait longer.
            EdjeError: Another try would not help.
        """
        self._was_answered |= failures.is_from_qdrant(error)
        self._require_right_address(call, error, limit)
        if not failures.is_away(error):
            raise self._translate(call, error) from error
        # A limit of requests is an answer, and a time limit may be the caller's own.
        if not failures.is_rate_limit(error) and not isinstance(error, TimeoutError):
            self._failed()
        wanted = failures.retry_after(error)
        pause = max(self._pause(call.tries), wanted or 0)
        is_last = call.tries >= self._options.retries
        is_long = wanted is not None and wanted > self._options.timeout
        call.tries += 1
        if limit is not None:
            limit.spend(time.monotonic() - started, answered=False)
            is_late = pause >= limit.left
            if is_last or is_late:
                raise self._unavailable(call, error, is_late=is_late) from error
            limit.spend(pause, answered=False)
            return pause
        patience = self._patience
        if patience is not None:
            is_limited = failures.is_rate_limit(error)
            what = "takes no more requests for now" if is_limited else "does not answer"
            left = patience.failed(call.began, f"{what} ({self._says(error)})")
            if patience.is_over or (pause > left and (is_last or is_long)):
                raise self._unavailable(call, error) from error
            return pause
        if is_last or is_long:
            raise self._unavailable(call, error) from error
        return pause

    def _unavailable(
        self, call: _Call, error: Exception, *, is_late: bool = False
    ) -> EngineUnavailableError:
        at, said = f"{self.address}{self._grpc}", self._says(error)
        wanted = failures.retry_after(error)
        if failures.is_rate_limit(error):
            return RateLimitedError(
                f"Qdrant at {at} takes no more requests for now ({said}); "
                + ("try again later" if wanted is None else f"try again in {wanted:g} s"),
                location=self.address,
                retry_after=wanted,
            )
        after = f"after {call.tries} tries"
        late = ", with no time left for more" if is_late else ""
        if failures.is_from_cluster(error):
            text = (
                f"a node of the cluster of {at} is away, {after}{late} ({said}); check that its "
                "nodes run"
            )
            if call.writes:
                text += (
                    ". What was to be written or deleted may have been on some of the replicas or "
                    "shards; run it again when the cluster is whole"
                )
        else:
            status = getattr(error, "status_code", None)
            said = f"{status}: {said}" if status else said
            text = (
                f"no answer from Qdrant at {at} {after}{late} ({said}); check the address and that "
                "the server runs"
            )
        return EngineUnavailableError(
            f"{text}. What it acknowledged before is kept", location=self.address
        )

    def _require_right_address(
        self, call: _Call, error: Exception, limit: TimeLimit | None
    ) -> None:
        """Look at the port if its first answer is none of Qdrant's.

        Raises:
            ConfigError: Something else is spoken there; says what.
        """
        if self._was_answered or call.tries:
            return
        if (reason := failures.certificate_problem(error)) is not None:
            raise ConfigError(
                f"the certificate of {self.address}{self._grpc} is not trusted: {reason}; give the "
                "name that it was issued for, and trust its issuer (SSL_CERT_FILE names a file of "
                "certificates for REST, GRPC_DEFAULT_SSL_ROOTS_FILE_PATH for gRPC)"
            ) from error
        if not failures.may_speak_otherwise(error):
            return
        parts = urlsplit(self.address if "://" in self.address else f"http://{self.address}")
        port = self._grpc_port or parts.port
        if parts.hostname is None or port is None:
            return
        seconds = 1.0 if limit is None else min(1.0, max(limit.left, 0.01))
        found = failures.spoken_at(parts.hostname, port, seconds)
        asked = failures.Spoken(parts.scheme == "https", self._grpc_port is not None)
        if found is None or found == asked:
            return
        host = parts.hostname
        advice = []
        if found.tls != asked.tls:
            scheme = "https" if found.tls else "http"
            advice.append(
                f"speaks {'TLS' if found.tls else 'plain text, not TLS'}: give an address that "
                f"begins with {scheme}://"
            )
        if found.grpc and not asked.grpc:
            advice.append(
                "speaks gRPC: give the address with the port of REST (6333 unless the server was "
                f"told otherwise), and to use gRPC prefer_grpc=True and grpc_port={port} "
                f"(--grpc --grpc-port {port}) too"
            )
        elif asked.grpc and not found.grpc:
            advice.append(
                "speaks REST, not gRPC: give the server's port of gRPC as grpc_port (--grpc-port); "
                "it is 6334 unless the server was told otherwise"
            )
        if advice:
            raise ConfigError(f"port {port} of {host} {'; and it '.join(advice)}") from error

    def _says(self, error: Exception) -> str:
        return self._without_key(failures.says(error))

    def _without_key(self, text: str) -> str:
        return text.replace(self._secret, "***") if self._secret else text

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

    def _translate(self, call: _Call, error: Exception) -> Exception:
        name, said, status = call.name, self._says(error), failures.status_of(error)
        if self.is_local and f"{name} not found" in str(error):
            return CollectionNotFoundError(self.address, name, self.known(), self.alias)
        if status in (401, 403):
            why = self._without_key(failures.refusal(error, name, writes=call.writes))
            return KeyRefusedError(
                f"Qdrant at {self.address} refused the request ({status}): {why}",
                location=self.address,
            )
        if not self._was_answered and failures.is_another_program(error):
            path = urlsplit(self.address).path
            return ConfigError(
                f"what answers at {self.address}{self._grpc} is not Qdrant ({said}); "
                + (
                    f"the address has the path {path}: leave it out, unless Qdrant is behind a "
                    "proxy there"
                    if path
                    else "check host and port"
                )
            )
        if status == 404 and failures.is_missing_collection(error):
            return CollectionNotFoundError(self.address, name, self.known(), self.alias)
        is_refused = isinstance(error, ValueError) and not failures.is_another_program(error)
        if status in (400, 422) or is_refused:
            return ConfigError(f"Qdrant at {self.address} refused a request about {name!r}: {said}")
        text = f"Qdrant at {self.address} failed on {name!r}: {said}"
        is_answer = status is not None and status < 500
        return StoreError(text if is_answer else f"{text}; see the server's log")


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
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"location {location!r} is no address: {error}; {_LOCATIONS}") from error
    grpc_port = _grpc_port(location, port, parts.path, options)
    try:
        return QdrantClient(
            url=location,
            api_key=options.api_key,
            prefer_grpc=options.prefer_grpc,
            grpc_port=grpc_port,
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


def _grpc_port(location: str, port: int | None, path: str, options: QdrantOptions) -> int:
    """Return the port of gRPC.

    Raises:
        ConfigError: It is not known which port to ask.
    """
    if not options.prefer_grpc:
        return _GRPC_PORT
    if options.grpc_port is None and port not in (None, _REST_PORT):
        raise ConfigError(
            f"the address {location} names port {port}, not {_REST_PORT}, so the port of gRPC is "
            f"not known; give it as grpc_port, or --grpc-port (a server's own default is "
            f"{_GRPC_PORT})"
        )
    if path.strip("/"):
        raise ConfigError(
            f"the address {location} has a path, which gRPC does not know; leave it out, or use "
            "REST"
        )
    return options.grpc_port or _GRPC_PORT


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
