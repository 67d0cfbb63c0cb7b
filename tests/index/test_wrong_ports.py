"""Addresses that lead to another port, another protocol or another program."""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from fixed_answer import fixed_answer
from index_stand_in import StandIn

from edje_qdrant.attach.points import AttachablePoints
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError, EngineUnavailableError, StoreError
from edje_qdrant.image_to_text.caption_collection import CaptionCollection
from edje_qdrant.index import QdrantOptions, create_on_server, open_on_server
from edje_qdrant.index.qdrant.connection import Connection

#: A private key and its certificate, for these tests alone.
PEM = Path(__file__).parent / "self_signed.pem"


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """Ports of REST and of gRPC, with TLS and without."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = grpc.server(ThreadPoolExecutor(1))
        secure = grpc.ssl_server_credentials([(PEM.read_bytes(), PEM.read_bytes())])
        found = {
            "grpc": server.add_insecure_port("127.0.0.1:0"),
            "grpc tls": server.add_secure_port("127.0.0.1:0", secure),
        }
        server.start()
    plain, protected = StandIn(), StandIn()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PEM)
    http: Any = protected._server
    http.socket = context.wrap_socket(http.socket, server_side=True)
    http.handle_error = lambda *_: None  # of handshakes that fail, as they should here
    with plain, protected:
        found |= {"rest": plain._server.server_port, "rest tls": http.server_port}
        yield found
    server.stop(0).wait()


@pytest.mark.parametrize(
    ("scheme", "port", "grpc_port", "says"),
    [
        ("http", "grpc", None, "speaks gRPC: give the address with the port of REST"),
        ("http", "grpc tls", None, "speaks TLS: .* https://; and it speaks gRPC"),
        ("http", "rest tls", None, "speaks TLS: give an address that begins with https://"),
        ("https", "rest", None, "speaks plain text, not TLS: .* begins with http://"),
        ("https", "rest tls", None, "is not trusted: self.signed certificate;"),
        ("http", "rest", "rest", "speaks REST, not gRPC: give the server's port of gRPC"),
        ("http", "rest", "grpc tls", "speaks TLS: give an address that begins with https://"),
        ("https", "rest", "grpc", "speaks plain text, not TLS: .* begins with http://"),
        ("https", "rest", "grpc tls", "is not trusted: self.signed certificate;"),
        ("http", "rest", "grpc", "is not Qdrant"),  # another program's gRPC
    ],
)
def test_what_a_port_speaks_is_said_at_once(
    ports: dict[str, int], scheme: str, port: str, grpc_port: str | None, says: str
) -> None:
    url = f"{scheme}://127.0.0.1:{ports[port]}"
    options = QdrantOptions(timeout=60)
    if grpc_port is not None:
        options = QdrantOptions(prefer_grpc=True, grpc_port=ports[grpc_port], timeout=60)
    with pytest.raises(ConfigError, match=says) as caught:
        open_on_server(url, "images", options)
    assert str(ports[grpc_port or port]) in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/dashboard", 404, b""),
        ("/dashboard", 200, b"<html><title>Qdrant</title></html>"),
        ("/qdrant", 404, b"<html><title>404 Not Found</title></html>"),
        ("", 404, b"no"),
        ("", 200, b"Hello!"),
    ],
)
def test_an_address_where_qdrant_is_not(path: str, status: int, body: bytes) -> None:
    """As a server answers for a path that it does not know, and a proxy."""
    with (
        fixed_answer(status, body) as url,
        pytest.raises(ConfigError, match="is not Qdrant") as caught,
    ):
        open_on_server(f"{url}{path}", "images", QdrantOptions(timeout=60))
    hint = f"has the path {path}: leave it out" if path else "check host and port"
    assert hint in str(caught.value)


@pytest.mark.parametrize("url", ["http://localhost", "http://localhost:6333", "http://[::1]:6333/"])
def test_the_port_of_grpc_is_known_beside_the_usual_one(url: str) -> None:
    for given, asked in ((None, 6334), (6533, 6533)):
        connection = Connection(url, QdrantOptions(prefer_grpc=True, grpc_port=given))
        assert connection.client.init_options["grpc_port"] == asked
        connection.close()


@pytest.mark.parametrize("url", ["http://localhost:6533", "https://qdrant.example:443"])
def test_the_port_of_grpc_is_not_guessed_beside_another_one(url: str) -> None:
    """It would be another server's."""
    for use in (
        lambda: open_on_server(url, "images", QdrantOptions(prefer_grpc=True)),
        lambda: create_on_server(url, "images", 8, {}, QdrantOptions(prefer_grpc=True)),
        lambda: ImageCollection.open(url, "images", prefer_grpc=True),
        lambda: CaptionCollection.open(url, "texts", prefer_grpc=True),
        lambda: AttachablePoints(url, "theirs", options=QdrantOptions(prefer_grpc=True)),
    ):
        with pytest.raises(ConfigError, match=r"give it as grpc_port, or --grpc-port .*6334"):
            use()


def test_what_cannot_be_a_port_of_grpc() -> None:
    for port in (0, 70_000, "6334", True):
        with pytest.raises(ConfigError, match="grpc_port is"):
            QdrantOptions(prefer_grpc=True, grpc_port=port)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="gRPC is not asked for"):
        QdrantOptions(grpc_port=6334)
    with pytest.raises(ConfigError, match="has a path, which gRPC does not know"):
        open_on_server("http://localhost/path", "images", QdrantOptions(prefer_grpc=True))


def test_a_server_that_answered_once_is_only_away(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its port is not looked at."""
    index = create_on_server(stand_in.url, "images", 8, {}, QdrantOptions(retries=0))
    monkeypatch.setattr(
        "edje_qdrant.index.qdrant.failures.spoken_at", lambda *_: pytest.fail("looked at")
    )
    stand_in.answers_left = 0
    with pytest.raises(EngineUnavailableError, match="check the address and that the server runs"):
        index.count()
    index.close()


def test_an_answer_of_another_form(stand_in: StandIn) -> None:
    stand_in.failures.extend([(409, {})] * 4)
    with pytest.raises(StoreError, match=r"told to fail$"):
        open_on_server(stand_in.url, "images", QdrantOptions())


def test_a_page_in_the_place_of_an_answer(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a proxy, once Qdrant has answered."""
    index = create_on_server(stand_in.url, "images", 8, {}, QdrantOptions())
    with fixed_answer(200, b"<html>Be right back</html>") as url:
        monkeypatch.setattr(index._backend._client._client.openapi_client.client, "host", url)
        with pytest.raises(StoreError, match="its answer is not JSON"):
            index.count()
    index.close()
