"""What errors say of a server's own words: keys, clusters, limits."""

from __future__ import annotations

import os
from typing import Any

import pytest
from fixed_answer import fixed_answer
from index_engines import FAST, image_id, make_points, unit_vectors
from index_stand_in import StandIn
from qdrant_client.http.exceptions import UnexpectedResponse

from edje_qdrant.errors import ConfigError, EdjeError, EngineUnavailableError
from edje_qdrant.index import QdrantOptions, create_on_server, open_on_server
from edje_qdrant.index.qdrant import failures

#: Sentences of a server about keys, by status.
REFUSALS = [
    (401, "Must provide an API key or an Authorization bearer token", "no key was sent"),
    (401, "Invalid API key or JWT", "the key is not one of the server's"),
    (403, "InvalidSignature", "the key is not one of the server's"),
    (403, "ExpiredSignature", "the token has expired"),
    (403, "Forbidden: Global manage access is required", "the key may not do this"),
    (403, "Forbidden: Write access to collection images is required", "the key may not do this"),
    (403, "Forbidden: Access to collection images is required", "is not for this collection"),
]


def answer_of(status: int, body: bytes) -> UnexpectedResponse:
    return UnexpectedResponse(status, "Reason", body, {})  # type: ignore[arg-type]


@pytest.mark.parametrize(("status", "sentence", "why"), REFUSALS)
@pytest.mark.parametrize("form", ['{"status": {"error": "%s"}, "time": 0.0}', "%s"])
def test_the_reason_of_a_refused_key_is_passed_on(
    status: int, sentence: str, why: str, form: str
) -> None:
    error = answer_of(status, (form % sentence).encode())
    for writes in (False, True):
        said = failures.refusal(error, "images", writes=writes)
        assert said.startswith(sentence)
        assert why in said
        assert ("may write to 'images'" in said) == writes
        assert ("give an API key that may read 'images'" in said) == (not writes)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"status":{"error":"Wrong input: %s"},"time":0.0}' % (b"x" * 500), "Wrong input: xxx"),
        (b'{"message": "no route"}', "no route"),
        (b"<html><head><title>413 Too Large</title></head>", "413 Too Large"),
        (b"<html></html>", "400 Reason"),
        (b"", "400 Reason"),
        (b"plain\nwords", "plain words"),
        (b"y" * 1000, "y" * 300 + " ..."),
        (b'{"status":{"error":"a \\u001b[31mred\\u202e one"}}', r"a \x1b[31mred\u202e one"),
    ],
)
def test_the_servers_own_sentence_and_nothing_else(body: bytes, said: str) -> None:
    shown = failures.says(answer_of(400, body))
    assert shown.startswith(said)
    for word in ("Unexpected Response", "Raw response", "b'", "status"):
        assert word not in shown
    if body.startswith(b'{"status":{"error":"Wrong'):
        assert len(shown) == 13 + 500  # whole


def test_a_node_away_is_no_damage(stand_in: StandIn) -> None:
    index = create_on_server(stand_in.url, "images", 8, {}, FAST)
    index.upsert(make_points(unit_vectors(5)))
    stand_in.node_away = True
    stand_in.seen.clear()
    for read in (index.count, lambda: index.nearest(unit_vectors(1), 3)):
        with pytest.raises(EngineUnavailableError, match=r"a node of the cluster .* is away") as no:
            read()
        assert "The service is currently unavailable" in str(no.value)
        assert "some of the replicas" not in str(no.value)
    assert len(stand_in.seen) == 2 * (FAST.retries + 1)
    for write in (
        lambda: index.upsert(make_points(unit_vectors(1))),
        lambda: index.delete([image_id(0)]),
        lambda: index.set_payload({image_id(0): {"n": 1}}),
    ):
        with pytest.raises(EngineUnavailableError, match="may have been on some of the replicas"):
            write()
    stand_in.node_away = False
    assert index.count() == 5
    index.close()


def test_a_node_that_comes_back_is_asked_again(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = create_on_server(stand_in.url, "images", 8, {}, FAST)
    stand_in.node_away = True
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        stand_in.node_away = len(pauses) < 2

    monkeypatch.setattr("edje_qdrant.index.qdrant.connection.time.sleep", pause)
    index.upsert(make_points(unit_vectors(5)))
    assert index.count() == 5
    index.close()


def test_a_cluster_without_quorum(stand_in: StandIn) -> None:
    stand_in.no_quorum = True
    with pytest.raises(EngineUnavailableError, match="Waiting for consensus operation commit"):
        create_on_server(stand_in.url, "images", 8, {}, FAST)


@pytest.mark.parametrize(
    "sentence",
    [
        "Service internal error: Failed to apply operation to at least one `Active` replica. "
        "Consistency of this update is not guaranteed. Please retry. ",
        "Service internal error: Failed to propose operation: leader is not established within 10s",
        "Service internal error: The replica set for shard 0 on peer 1 does not have enough active "
        "replicas",
    ],
)
def test_sentences_of_a_cluster_in_trouble(sentence: str) -> None:
    error = answer_of(500, b'{"status":{"error":"%s"}}' % sentence.encode())
    assert failures.is_away(error)
    assert failures.is_from_cluster(error)


@pytest.mark.parametrize(
    "sentence", ["Service internal error: No space left on device", "task 12 panicked"]
)
def test_sentences_of_a_damaged_server(sentence: str) -> None:
    assert not failures.is_away(answer_of(500, b'{"status":{"error":"%s"}}' % sentence.encode()))


class GrpcError(Exception):
    """An error of gRPC: its code and details."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__("of many\nlines")
        self._code, self._details = code, details

    def code(self) -> Any:
        return type("Code", (), {"name": self._code})

    def details(self) -> str:
        return self._details


AWAY = "Service internal error: 1 of 1 read operations failed:\n  Tonic status error: code: 'The "


@pytest.mark.parametrize(
    ("code", "details", "away", "cluster"),
    [
        ("INTERNAL", f"{AWAY}service is currently unavailable'", True, True),
        ("UNAVAILABLE", f"{AWAY}service is currently unavailable'", True, True),
        ("INTERNAL", "Service internal error: Waiting for consensus operation", True, True),
        ("UNAVAILABLE", "failed to connect to all addresses", True, False),
        ("INTERNAL", "Received RST_STREAM with error code 2", True, False),
        ("UNKNOWN", "Stream removed", True, False),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", True, False),
        ("INTERNAL", "Service internal error: No space left on device", False, False),
        ("INVALID_ARGUMENT", "Wrong input", False, False),
    ],
)
def test_the_same_over_grpc(code: str, details: str, away: bool, cluster: bool) -> None:
    error = GrpcError(code, details)
    assert failures.is_away(error) == away
    assert failures.is_from_cluster(error) == cluster
    assert failures.says(error) == " ".join(details.split())


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure")
def test_an_error_within_an_answer_keeps_keys_hidden() -> None:
    """A server may repeat what was sent."""
    key = "5ecret-5ecret"
    body = b'{"status":{"error":"bad key %s"}}' % key.encode()
    with (
        fixed_answer(403, body) as url,
        pytest.raises(EdjeError, match=r"bad key \*\*\*") as caught,
    ):
        open_on_server(url, "images", QdrantOptions(api_key=key))
    assert key not in str(caught.value)


@pytest.mark.qdrant_server
@pytest.mark.parametrize("engine", ["server", "server_grpc"], indirect=True)
def test_a_real_servers_own_sentence(engine: Any) -> None:
    index = engine.create("images", 8, {})
    index.upsert(make_points(unit_vectors(3)))
    connection = index._backend._connection
    with pytest.raises(ConfigError, match="expected dim: 8, got 4") as caught:
        connection.call(
            index._backend._collection, connection.client.query_points,
            index._backend._collection, [1.0, 0.0, 0.0, 0.0],
        )  # fmt: skip
    for word in ("Unexpected Response", "Raw response", "time"):
        assert word not in str(caught.value)
    index.close()


@pytest.mark.qdrant_server
def test_a_real_servers_ports() -> None:
    url, port = (os.environ.get(f"EDJE_QDRANT_{name}") for name in ("URL", "GRPC_PORT"))
    if not url or not port:
        pytest.skip("EDJE_QDRANT_URL and EDJE_QDRANT_GRPC_PORT name no server")
    host, _, rest = url.rpartition("://")[2].rstrip("/").rpartition(":")
    options = QdrantOptions(timeout=5)
    with pytest.raises(ConfigError, match="speaks gRPC"):
        open_on_server(f"http://{host}:{port}", "images", options)
    with pytest.raises(ConfigError, match="speaks plain text, not TLS"):
        open_on_server(f"https://{host}:{rest}", "images", options)
    with pytest.raises(ConfigError, match=r"is not Qdrant.*has the path /dashboard/x"):
        open_on_server(f"http://{host}:{rest}/dashboard/x", "images", options)
    wrong = QdrantOptions(prefer_grpc=True, grpc_port=int(rest), timeout=5)
    with pytest.raises(ConfigError, match="speaks REST, not gRPC"):
        open_on_server(url, "images", wrong)
