"""Service over stdin and stdout: only the protocol is printed, and its end ends the process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import anyio

from edje_qdrant.integrations.mcp.server import ImageServer

__all__ = ["close_server", "serve_stdio", "stdout_to_stderr"]

_INTERRUPTED = 130


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send everything that is printed in the block to stderr: stdout is for the protocol.

    While it serves, the SDK does the same.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def serve_stdio(server: ImageServer) -> NoReturn:
    """Serve until stdin is closed, then close the collection and end the process.

    A call in progress is not waited for, nor is it when the process is interrupted: it ends at
    once. A collection stays whole however a process that writes to it ends.

    Args:
        server: The server.
    """
    # The SDK waits for a line of stdin in a thread that an interrupt does not reach.
    signal.signal(signal.SIGINT, _end)
    try:
        anyio.run(server.run_stdio_async, backend="asyncio")
    except Exception as error:
        if not _is_broken_pipe(error):
            raise
    close_server(server)
    _leave(0)  # a client kills a server that takes two seconds, as ending Python with torch may


def close_server(server: ImageServer) -> None:
    """Close the collection; if a call is in progress, end the process without waiting for it."""
    if server.busy:
        _leave(0)
    server.tools.close()


def _is_broken_pipe(error: BaseException) -> bool:
    """Return whether stdout is not read any more: the client has ended."""
    inner = getattr(error, "exceptions", None)  # of a group
    return isinstance(error, BrokenPipeError) if inner is None else all(map(_is_broken_pipe, inner))


def _end(_number: int, _frame: Any) -> NoReturn:
    with suppress(OSError):
        os.write(2, b"error: interrupted; what was written before is kept\n")
    _leave(_INTERRUPTED)


def _leave(code: int) -> NoReturn:
    """End the process without waiting for its threads."""
    os._exit(code)
