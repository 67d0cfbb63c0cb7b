"""Thousands of random requests, and decoders that hang: the service goes on answering."""

from __future__ import annotations

import base64
import io
import json
import random
import socket
import threading
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from PIL import Image
from service_process import ServiceProcess, hanging_decoders

pytestmark = pytest.mark.slow

REQUESTS = 5000
SEED = 20261127

# Answers of 500 and above that a request can have without a fault of the service.
ALLOWED = {501, 503}

NUMBERS = [0, 1, -1, 2, 2.0, 2.5, 1e308, 2**31, 2**53 + 1, 2**63, -(2**63), 10**30, 0.1]
TEXTS = [
    "a red square", "", " ", "...", "a" * 2000, "\0", "\x1b]0;title\x07", "é" * 50, "\U0001f415",
    "\ud800", "a\udfffb", "‮", "%00", "../../etc/passwd", "true", "auto", "NaN", "path", "_edje",
    "a.b[].c", "a..b", "[]", '"', "\n", "<image>", "[SEP]",
]  # fmt: skip
HEADS = [
    ("Origin", [b"http://[", b"null", b"\xff", b"http://localhost", b""]),
    ("Host", [b"[", b"localhost", b"a b", b"\xe9", b"evil.example", b""]),
    ("Content-Type", [
        b"application/json", b"application/json; charset=\xff", b"multipart/form-data",
        b"multipart/form-data; boundary=", b"multipart/form-data; boundary=x", b";", b"text/plain",
        b"application/x-www-form-urlencoded", b"",
    ]),
    ("X-Request-ID", [b"a b", b"\xff", b"x" * 500]),
    ("Range", [b"bytes=0-", b"bytes=9-1", b"bytes=a", b"bytes=" + b"0-1," * 100]),
    ("If-None-Match", [b'"', b"*", b"\xff"]),
    ("Transfer-Encoding", [b"identity", b"gzip"]),
    ("Expect", [b"100-continue", b"x"]),
    ("Accept-Encoding", [b"\xff", b"gzip;q=a"]),
]  # fmt: skip


class Requests:
    """Make random requests: valid ones with something wrong, and ones that never were valid."""

    def __init__(self, seed: int, ids: list[str], image: bytes) -> None:
        self.random = random.Random(seed)
        self.ids, self.image = ids, image

    def value(self, depth: int = 0) -> Any:
        pick = self.random.random()
        if depth < 4 and pick < 0.15:
            return [self.value(depth + 1) for _ in range(self.random.randrange(4))]
        if depth < 4 and pick < 0.3:
            names = [*TEXTS, "key", "match", "range", "must", "value", "gt", "any", "nested"]
            count = self.random.randrange(4)
            return {self.random.choice(names): self.value(depth + 1) for _ in range(count)}
        if pick < 0.45:
            return self.random.choice([None, True, False])
        return self.random.choice([*NUMBERS, *TEXTS, self.id()])

    def id(self) -> str:
        strange = ["00000000-0000-4000-8000-000000000000", "no-id", self.ids[0].upper(), "\ud800"]
        return self.random.choice([*self.ids, *strange])

    def item(self) -> Any:
        """Return a query, a document or an input of the routes for other services' clients."""
        image = base64.b64encode(self.picture()).decode()
        uri = f"data:image/png;base64,{image}"
        return self.random.choice(
            [
                "a", self.id(), "picture-0001.png", uri, {"text": self.id()}, {"image": image},
                {"content": [{"type": "image_url", "image_url": {"url": uri}}]},
                {"image": "http://127.0.0.1:1/a.png"}, {"image": "file:///etc/passwd"},
                self.value(),
            ]
        )  # fmt: skip

    def body(self, route: str) -> dict[str, Any]:
        valid: dict[str, dict[str, Any]] = {
            "search": {
                "text": "a red square", "top_k": 3, "num_candidates": 5, "filter": {"album": "a"},
                "fusion": "rrf", "fusion_weights": [1, 2], "group_by": "page", "budget_ms": 500,
                "adaptive": False, "min_score": -10, "on_missing": "error", "first_stage": True,
                "collapse_duplicates": 0.9,
            },
            "search/next": {"cursor": "AAAA", "top_k": 2},
            "recommend": {
                "liked": [self.id()], "disliked": [], "text": "a", "strategy": "best_score",
                "qdrant_filter": {"must": [{"key": "page", "range": {"gt": 1}}]},
            },
            "rerank": {
                "query": self.item(), "documents": [self.item(), self.id()], "top_n": 1,
                "return_documents": True,
            },
            "embeddings": {
                "input": [self.item(), "a"], "encoding_format": "base64", "dimensions": 24,
            },
            "explain": {"image_id": self.id(), "text": "a red square"},
        }  # fmt: skip
        body = valid[route]
        for name in [*body]:
            if self.random.random() < 0.08:
                del body[name]
        for _ in range(self.random.randrange(3)):
            names = [*body, "top_k", "filter", "qdrant_filter", "text", "min_score", *TEXTS]
            body[self.random.choice(names)] = self.value()
        return body

    def written(self, body: Any) -> bytes:
        """Write JSON, sometimes broken; lone surrogates as they are or as escapes."""
        escaped = self.random.random() < 0.7
        data = json.dumps(body, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
        pick = self.random.random()
        if pick < 0.1 and data:
            place = self.random.randrange(len(data))
            data = (
                data[:place] + self.random.randbytes(self.random.randrange(4)) + data[place + 1 :]
            )
        elif pick < 0.14:
            data = data[: self.random.randrange(len(data) + 1)]
        elif pick < 0.16:
            data = self.random.choice([b"[" * 20_000, b"", b"null", b"\xef\xbb\xbf{}", b"1e999"])
        return data

    def form(self) -> tuple[bytes, bytes]:
        mark = b"edge"
        parts = []
        for _ in range(self.random.randrange(1, 4)):
            fields = ["file", "files", "top_k", "filter", "fields", "group_by", "x"]
            name = self.random.choice([*fields, "collapse_duplicates"])
            head = f'Content-Disposition: form-data; name="{name}"'.encode()
            if name in ("file", "files") or self.random.random() < 0.1:
                named = self.random.choice([b"a.png", b"\xff", b"", b"../x", b"a\x1b[31m.png"])
                head += b'; filename="' + named + b'"'
                content = self.picture()
            else:
                content = self.written(self.value())
            parts.append(b"--" + mark + b"\r\n" + head + b"\r\n\r\n" + content + b"\r\n")
        end = b"--" + mark + (b"--\r\n" if self.random.random() < 0.9 else b"")
        return b"".join(parts) + end, b"multipart/form-data; boundary=" + mark

    def picture(self) -> bytes:
        data = bytearray(self.image)
        pick = self.random.random()
        if pick < 0.3:
            del data[self.random.randrange(len(data)) :]
        elif pick < 0.7:
            for _ in range(self.random.randrange(1, 8)):
                data[self.random.randrange(len(data))] = self.random.randrange(256)
        elif pick < 0.8:
            return self.random.randbytes(self.random.randrange(200))
        return bytes(data)

    def path(self) -> bytes:
        known = ["/", "/v1/collection", "/v1/images", "/healthz", "/metrics", "/openapi.json",
                 "/static/app.js", "/static/", "/v1/search/"]  # fmt: skip
        strange = ["%00", "%ff", "%", "..%2f", "%2e%2e", "%ed%a0%80", ";", "?limit=", "?limit=true",
                   "?limit=5&limit=6", "?size=160", "?size=1", "?%ff=%ff", "//", "é"]  # fmt: skip
        path = self.random.choice([*known, f"/v1/images/{self.id()}"])
        path += self.random.choice(["", "", "/file", "/thumbnail", *strange])
        return path.encode("utf-8", "surrogatepass").replace(b" ", b"%20")

    def next(self) -> bytes:
        """Return one request as it goes over the wire."""
        headers = {b"Host": b"localhost"}
        method, content = b"POST", b""
        pick = self.random.random()
        if pick < 0.55:
            route = self.random.choice(["search", "search", "search/next", "recommend", "rerank",
                                        "embeddings", "explain"])  # fmt: skip
            path, content = f"/v1/{route}".encode(), self.written(self.body(route))
            if route == "rerank":
                path = self.random.choice([path, b"/rerank", b"/v2/rerank"])
            headers[b"Content-Type"] = b"application/json"
        elif pick < 0.75:
            path = self.random.choice([b"/v1/search/image", b"/v1/ingest"])
            content, headers[b"Content-Type"] = self.form()
        else:
            path = self.path()
            method = self.random.choice([b"GET", b"GET", b"GET", b"HEAD", b"OPTIONS", b"DELETE"])
        if self.random.random() < 0.15:
            name, values = self.random.choice(HEADS)
            headers[name.encode()] = self.random.choice(values)
        length = str(len(content)).encode()
        if self.random.random() < 0.02:
            length = self.random.choice([b"-1", b"9" * 40, b"1e3", b"", b"0", b"0x10"])
        if method == b"POST" or self.random.random() < 0.1:
            headers[b"Content-Length"] = length
        headers[b"Connection"] = b"close"
        head = b"".join(name + b": " + value + b"\r\n" for name, value in headers.items())
        return method + b" " + path + b" HTTP/1.1\r\n" + head + b"\r\n" + content


def answer_of(port: int, request: bytes) -> tuple[int, bytes]:
    """Return status and body; 0 if the connection was closed without an answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request)
        if b"Transfer-Encoding" in request:
            connection.shutdown(socket.SHUT_WR)  # it may wait for the end of the body
        answer = b""
        try:
            while part := connection.recv(1 << 16):
                answer += part
        except ConnectionResetError:
            pass
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split(b" ", 2)[1]) if head else 0), body


class Hanging(threading.Thread):
    """Send one image after the other whose decoder hangs; `answers` has their statuses."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.answers: list[int] = []
        self.stop = threading.Event()
        self._url = url

    def run(self) -> None:
        image = io.BytesIO()
        Image.new("RGB", (101, 40)).save(image, "PNG")
        files = {"file": ("hangs.png", image.getvalue())}
        while not self.stop.is_set():
            answer = httpx.post(f"{self._url}/v1/search/image", files=files, timeout=90)
            self.answers.append(answer.status_code)


def test_random_requests_are_answered_and_the_service_stays(start, tmp_path, tiny_folder, encoded):
    with ExitStack() as stack:
        start(stack, tmp_path)
    service = ServiceProcess(
        "--index", tmp_path / "index", "--model", tiny_folder, "--images", tmp_path / "pictures",
        "--ingest", "--decode-seconds", 2, environment=hanging_decoders(tmp_path / "site"),
    )  # fmt: skip
    service.wait()
    paths, ids, _ = encoded
    requests = Requests(SEED, ids, paths[0].read_bytes())
    search = {"text": "a red square", "top_k": 5, "filter": {"album": "a"}}
    statuses: dict[int, int] = {}
    hanging = Hanging(service.url)
    hanging.start()
    try:
        before = httpx.post(f"{service.url}/v1/search", json=search).json()["hits"]
        for number in range(REQUESTS):
            request = requests.next()
            status, body = answer_of(service.port, request)
            statuses[status] = statuses.get(status, 0) + 1
            assert status < 500 or status in ALLOWED, (number, status, request[:2000], body)
            if status >= 400 and not request.startswith(b"HEAD") and body.startswith(b"{"):
                error = json.loads(body.split(b"\r\n")[-1] if b"\r\n" in body else body)
                assert set(error) == {"error", "message", "detail", "request_id"}, (
                    request[:500],
                    body,
                )
        assert httpx.get(f"{service.url}/readyz").status_code == 200
        after = httpx.post(f"{service.url}/v1/search", json=search).json()["hits"]
        assert [hit["image_id"] for hit in after] == [hit["image_id"] for hit in before]
        assert [hit["score"] for hit in after] == pytest.approx([hit["score"] for hit in before])
    finally:
        hanging.stop.set()
        hanging.join()
        status = service.end()
    assert status == 0
    assert hanging.answers
    assert {*hanging.answers} <= {422, 503, 504}
    assert not any("Traceback" in line for line in service.lines)
    # The requests are of all kinds: some are answered, some refused for each reason.
    assert {200, 400, 404, 405, 422} <= {*statuses}, statuses
    assert statuses[200] > REQUESTS // 20, statuses
    assert statuses.get(0, 0) < REQUESTS // 20, statuses
