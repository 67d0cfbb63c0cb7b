"""The command, as a process that is asked over a socket and told to end."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack

import httpx
import pytest
from service_process import ServiceProcess

pytestmark = pytest.mark.slow

KEY = "a-key-of-some-length"


@pytest.fixture(scope="module")
def service(start, tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("process")
    with ExitStack() as stack:
        start(stack, folder)
    service = ServiceProcess(
        "--index", folder / "index", "--model", tiny_folder, "--images", folder / "pictures",
        environment={"EDJE_QDRANT_SERVICE_KEY": f"{KEY}, another-key-of-length"},
    )  # fmt: skip
    service.wait()
    yield service
    service.end()


@pytest.fixture
def client(service):
    with httpx.Client(base_url=service.url, headers={"X-API-Key": KEY}, timeout=60) as client:
        yield client


def test_it_answers_and_asks_for_its_key(service, client):
    assert len(client.post("/v1/search", json={"text": "a", "top_k": 3}).json()["hits"]) == 3
    assert httpx.get(service.url + "/v1/collection").status_code == 401
    assert client.get("/v1/collection", headers={"Host": "evil.example"}).status_code == 421
    assert "server" not in client.get("/").headers


def test_what_is_no_http_and_paths_as_they_come_do_no_harm(service, client):
    for lines in (
        b"GET /v1/../../../etc/passwd HTTP/1.1",
        b"GET //etc/passwd HTTP/1.1",
        b"GET /static/../../settings.py HTTP/1.1",
        b"GET /v1/images/%2e%2e%2f%2e%2e%2fetc%2fpasswd/file HTTP/1.1",
        b"BREW /v1/search HTTP/1.1",
    ):
        with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
            head = f"\r\nHost: localhost\r\nX-API-Key: {KEY}\r\nConnection: close\r\n\r\n"
            connection.sendall(lines + head.encode())
            answer = b""
            while part := connection.recv(65536):
                answer += part
        assert answer.split(b" ", 2)[1] in (b"404", b"405"), answer[:200]
        assert b"root:" not in answer
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.sendall(b"\x16\x03\x01\x00\xff" * 50)
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
    assert client.get("/readyz").status_code == 200


def test_it_ends_when_told_and_answers_what_is_under_way_first(service, client):
    body = b'{"text": "a red square"}'
    head = (
        f"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "X-Request-ID: the-last\r\nConnection: close\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        connection.sendall(head.encode() + body[:5])
        while "edje_requests_under_way 2.0" not in client.get("/metrics").text:
            time.sleep(0.02)
        service.process.terminate()
        while _accepts(service.port):
            time.sleep(0.02)
        connection.sendall(body[5:])
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200")
    assert service.end() == 0
    log = service.log()
    assert [line["status"] for line in log if line.get("request_id") == "the-last"] == [200]
    assert all({"time", "level", "message"} <= set(line) for line in log)
    assert KEY not in "".join(service.lines)


def _accepts(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True
