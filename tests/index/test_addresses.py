"""Addresses of servers: what is asked, and what is shown of keys and passwords."""

from __future__ import annotations

import dataclasses
import socket
import warnings

import pytest
from qdrant_client import QdrantClient

from edje_qdrant.errors import ConfigError, EdjeError, EngineUnavailableError
from edje_qdrant.index import QdrantOptions, open_on_server
from edje_qdrant.index.qdrant.connection import Connection

ONCE = QdrantOptions(retries=0, timeout=1)
SECRET = "5ecret-5ecret-5ecret"


@pytest.mark.parametrize(
    ("location", "asked"),
    [
        ("http://localhost", "http://localhost:6333"),
        ("https://host/path", "https://host:6333/path"),
        ("https://host:443/path/", "https://host:443/path"),
        ("http://[::1]:80", "http://[::1]:80"),
        ("http://127.0.0.1:7000", "http://127.0.0.1:7000"),
        (":memory:", ":memory:"),
    ],
)
def test_the_address_is_the_one_that_is_asked(location, asked):
    connection = Connection(location, ONCE)
    assert connection.address == asked
    if location != ":memory:":
        assert connection.client._client.rest_uri.rstrip("/") == asked
    connection.close()


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({"url": "http://me:password@host/p?api_key=5"}, "http://host:6333/p"),
        ({"host": "host"}, "host:6333"),
        ({"host": "host", "port": 1, "https": True, "prefix": "p"}, "https://host:1/p"),
    ],
)
def test_the_address_of_a_client(given, asked):
    client = QdrantClient(**given, check_compatibility=False)
    assert Connection(client, ONCE).address.replace("/p", "p") == asked.replace("/p", "p")
    client.close()


def test_an_error_names_the_port_that_was_asked(monkeypatch):
    """`https://host/path` is asked on port 6333."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(111, "Connection refused")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(EngineUnavailableError) as caught:
        open_on_server("https://127.0.0.1/path", "images", ONCE)
    assert "Qdrant at https://127.0.0.1:6333/path" in str(caught.value)
    assert caught.value.location == "https://127.0.0.1:6333/path"


@pytest.mark.parametrize(
    "location",
    [
        f"http://me:{SECRET}@localhost:1",
        f"http://{SECRET}@localhost:1/path",
        f"http://me:pass/{SECRET}@localhost:1",
        f"https://localhost:1?api_key={SECRET}",
        f"https://localhost:1/path?x=1&token={SECRET}",
        f"http://localhost:1#{SECRET}",
        f"ftp://me:{SECRET}@localhost",
    ],
)
def test_what_is_no_part_of_an_address_is_refused_and_not_shown(location):
    """Qdrant's client leaves it out: the server would be asked without a key."""
    with pytest.raises(ConfigError) as caught:
        open_on_server(location, "images", ONCE)
    shown: BaseException | None = caught.value
    while shown is not None:
        assert SECRET not in repr(shown)
        assert SECRET not in str(shown)
        shown = shown.__cause__
    assert "localhost" in str(caught.value) or "location is" in str(caught.value)


def test_a_key_that_cannot_be_sent_is_not_shown():
    options = dataclasses.replace(ONCE, api_key=f"{SECRET}\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a key over plain HTTP
        with pytest.raises(EdjeError) as caught:
            open_on_server("http://localhost:1", "images", options)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(options)
