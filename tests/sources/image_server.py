"""An HTTP server of files with faults, which counts what it was asked for."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

__all__ = ["ImageServer"]


class ImageServer:
    """Serve the bytes in `files` by path; a context manager.

    Attributes:
        files: Path -> content.
        faults: Path -> what its next answers do instead, each one fault: an HTTP status, `cut`
            (the body ends early), or `loop` (a redirect to itself).
        asked: Method and path -> number of requests.
        etags: Whether answers have an ETag.
        ranges: Whether parts of files are sent.
        wait: Seconds before each answer.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[int | str]] = {}
        self.asked: Counter[tuple[str, str]] = Counter()
        self.sent = 0
        self.etags = self.ranges = True
        self.wait = 0.0
        self.requested: Callable[[], None] = lambda: None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> ImageServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def got(self, path: str) -> int:
        """Return how often a file was asked for with GET."""
        return self.asked["GET", path]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # A header and a body in two packets would wait for each other.
            wbufsize = 1 << 20
            disable_nagle_algorithm = True

            def log_message(self, *args: object) -> None: ...

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                outer.asked[self.command, path] += 1
                outer.requested()
                time.sleep(outer.wait)
                faults = outer.faults.get(path) or []
                fault = faults.pop(0) if faults else None
                if fault == "loop":
                    self.answer(302, b"", {"Location": self.path})
                    return
                if isinstance(fault, int):
                    self.answer(fault, b"fault", {"Retry-After": "0"})
                    return
                if path not in outer.files:
                    self.answer(404, b"none", {})
                    return
                body, headers, status = outer.files[path], dict[str, str](), 200
                if outer.etags:
                    headers["ETag"] = f'"{hashlib.md5(body).hexdigest()}"'
                else:
                    headers["Last-Modified"] = formatdate(1_700_000_000, usegmt=True)
                asked = self.headers.get("Range", "")
                if outer.ranges and asked.startswith("bytes="):
                    first, last = map(int, asked.removeprefix("bytes=").split("-"))
                    headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
                    body, status = body[first : last + 1], 206
                self.answer(status, body, headers, cut=fault == "cut")

            def answer(
                self, status: int, body: bytes, headers: dict[str, str], cut: bool = False
            ) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    sent = body[: len(body) // 2] if cut else body
                    outer.sent += len(sent)
                    self.wfile.write(sent)
                if cut:
                    self.close_connection = True

        return Handler
