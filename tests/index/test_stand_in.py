"""The stand-in answers every recorded request as the real server did."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from index_stand_in import StandIn
from qdrant_client import models

RECORDED = json.loads((Path(__file__).parent / "recorded/exchanges.json").read_bytes())


def exchanges(version: str) -> list[dict[str, Any]]:
    other = RECORDED["1.19.0 where it differs"] if version == "1.19.0" else {}
    return [e | other.get(str(n), {}) for n, e in enumerate(RECORDED["1.18.3"])]


def asked(url: str, exchange: dict[str, Any], key: str | None) -> tuple[int, dict[str, str], Any]:
    """Send a recorded request; return status, headers and what was said."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    request = exchange["request"]
    body = None if request is None else json.dumps(request, separators=(",", ":"))
    headers = {"api-key": key} if key else {}
    connection.request(exchange["method"], exchange["path"], body, headers)
    answer = connection.getresponse()
    text = answer.read()
    is_json = answer.getheader("content-type") == "application/json"
    found = {name.lower(): value for name, value in answer.getheaders()}
    connection.close()
    return answer.status, found, json.loads(text) if is_json else text.decode()


def own_left_out(value: Any) -> Any:
    """Leave out what is a run's own: times, ports and commits."""
    if isinstance(value, dict):
        return {k: own_left_out(v) for k, v in value.items() if k not in ("time", "commit")}
    if isinstance(value, list):
        return [own_left_out(each) for each in value]
    return re.sub(r"127\.0\.0\.1:\d+", "ADDRESS", value) if isinstance(value, str) else value


def nearly(value: Any) -> Any:
    """Allow scores and vectors to be rounded otherwise."""
    if isinstance(value, dict):
        return {key: nearly(each) for key, each in value.items()}
    if isinstance(value, list):
        return [nearly(each) for each in value]
    return pytest.approx(value, abs=2e-6) if isinstance(value, float) else value


@pytest.mark.parametrize("version", ["1.18.3", "1.19.0"])
def test_every_recorded_exchange(version: str) -> None:
    recorded = exchanges(version)
    create = next(e for e in recorded if (e["step"], e["method"]) == ("create", "PUT"))
    with ExitStack() as stack:
        server = stack.enter_context(StandIn(version))

        def restart(**more: Any) -> None:
            nonlocal server
            server = stack.enter_context(StandIn(version, **more))

        def restart_with_keys() -> None:
            restart(keys={"write-key-123456": True, "read-key-123456": False})
            plain = {**create["request"], "quantization_config": None}
            server.answer("PUT", ["collections", "images"], plain)

        def make_other() -> None:
            params = models.VectorParams(size=8, distance=models.Distance.COSINE)
            server.client.create_collection("other", params)

        # What happened to the server before a step, other than by the requests recorded.
        before: dict[str, Callable[[], Any]] = {
            "open what another made": make_other,
            "collection deleted while open": lambda: server.client.delete_collection("images"),
            "key": restart_with_keys,
            "cluster": restart,
            "cluster, a node gone": lambda: setattr(server, "node_away", True),
            "cluster, no quorum": lambda: setattr(server, "no_quorum", True),
        }
        for number, exchange in enumerate(recorded):
            kind, _, detail = exchange["step"].partition(": ")
            before.pop(kind, lambda: None)()
            key = detail if kind == "key" and detail != "None" else None
            status, headers, says = asked(server.url, exchange, key)
            where = f"{number} {exchange['step']}: {exchange['method']} {exchange['path']}"
            assert own_left_out(says) == nearly(own_left_out(exchange["response"])), where
            assert status == exchange["status"], where
            assert headers.items() >= exchange["headers"].items(), where
        assert not before
