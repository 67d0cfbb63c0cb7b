from __future__ import annotations

import json
import logging
import threading

import pytest

from edje_qdrant.errors import (
    CollectionLockedError,
    ConfigError,
    EngineUnavailableError,
    StoreError,
    TokensCorruptError,
)
from edje_qdrant.web.serve import JsonLines
from edje_qdrant.web.settings import ServiceSettings, allowed_hosts, check_exposure

KEY, OTHER = "k" * 20, "o" * 20
SEARCH = {"text": "a red square"}


@pytest.fixture
def client(shared):
    return shared


def refused(answer, status, error):
    assert (answer.status_code, answer.json()["error"]) == (status, error), answer.text
    body = answer.json()
    assert set(body) == {"error", "message", "detail", "request_id"}
    assert body["message"]
    assert body["request_id"] == answer.headers["x-request-id"]
    return body["message"]


def test_who_has_no_key_is_told_nothing(serve):
    client = serve(api_keys=(KEY, OTHER))
    for path in ("/v1/collection", "/v1/images", f"/v1/images/{client.ids[0]}/file", "/metrics"):
        refused(client.get(path), 401, "Unauthorized")
    wrong = [
        {"Authorization": "Bearer " + KEY[:-1]},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic " + KEY},
        {"X-API-Key": ""},
        {"X-API-Key": "é".encode()},
    ]
    for headers in wrong:
        refused(client.post("/v1/search", json=SEARCH, headers=headers), 401, "Unauthorized")
    refused(client.post("/v1/nothing"), 401, "Unauthorized")
    for headers in (
        {"Authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer {OTHER}"},
        {"X-API-Key": KEY},
    ):
        assert client.post("/v1/search", json=SEARCH, headers=headers).status_code == 200
    for path in ("/", "/static/app.js", "/healthz", "/readyz", "/openapi.json"):
        assert client.get(path).status_code == 200


def test_bodies_are_bounded_whether_they_say_their_size_or_not(serve):
    client = serve(max_body_bytes=2000, max_upload_bytes=3000)
    body = json.dumps({"text": "a" * 3000}).encode()
    kind = {"Content-Type": "application/json"}
    refused(client.post("/v1/search", content=body, headers=kind), 413, "TooLarge")
    pieces = (body[start : start + 500] for start in range(0, len(body), 500))
    refused(client.post("/v1/search", content=pieces, headers=kind), 413, "TooLarge")
    files = {"file": ("a.png", b"x" * 3000)}
    refused(client.post("/v1/search/image", files=files), 413, "TooLarge")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"text": "a", "top_k": 101}, "LimitExceeded"),
        ({"text": "a", "num_candidates": 1001}, "LimitExceeded"),
        ({"text": "a" * 1001}, "LimitExceeded"),
        ({"text": "..."}, "ConfigError"),
        ({"text": "a", "top_k": 5, "num_candidates": 4}, "ConfigError"),
        ({"text": "a", "fusion_weights": [1, 1]}, "ConfigError"),
        ({"text": "a", "min_score": "auto"}, "ConfigError"),
        ({"text": "a", "group_by": "_edje"}, "ConfigError"),
        ({"text": "a", "qdrant_filter": {"must": [{"kee": 1}]}}, "ConfigError"),
        (
            {"text": "a", "qdrant_filter": {"must": [{"key": "n", "range": {"gt": 2**53 + 1}}]}},
            "ConfigError",
        ),
        (
            {"text": "a", "qdrant_filter": {"must": [{"slice": {"total": 2, "index": 0}}]}},
            "ConfigError",
        ),
        ({"text": "a", "filter": {"a": 1}, "qdrant_filter": {"must": []}}, "BadRequest"),
    ],
)
def test_what_cannot_be_asked_is_named(client, body, error):
    refused(client.post("/v1/search", json=body), 400, error)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": ""},
        {"text": "a", "top_k": 0},
        {"text": "a", "topk": 3},
        {"text": 1},
        [],
        {"text": "a", "filter": {"n": 2**64}},
    ],
)
def test_what_is_of_another_form_is_refused(client, body):
    message = refused(client.post("/v1/search", json=body), 422, "InvalidRequest")
    assert "\n" not in message


def test_a_filter_nested_without_end_is_refused(client):
    deep: dict = {"must": []}
    for _ in range(60):
        deep = {"must": [deep]}
    refused(client.post("/v1/search", json={**SEARCH, "qdrant_filter": deep}), 400, "ConfigError")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("no"), 400),
        (StoreError("/srv/secret is gone"), 500),
        (TokensCorruptError("/srv/secret is damaged"), 500),
        (EngineUnavailableError("10.0.0.7 is away"), 503),
        (CollectionLockedError("/srv/secret"), 503),
    ],
)
def test_errors_have_a_status_and_tell_nothing_of_the_server(client, monkeypatch, error, status):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(client.retriever, "search_batch", fail)
    message = refused(client.post("/v1/search", json=SEARCH), status, type(error).__name__)
    assert "secret" not in message
    assert "10.0.0.7" not in message


def test_what_nobody_foresaw_is_no_more_than_an_error(client, monkeypatch, caplog):
    def fail(*_args, **_options):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(client.retriever, "search_batch", fail)
    with caplog.at_level(logging.ERROR, "edje_qdrant.web"):
        answer = client.post("/v1/search", json=SEARCH)
    assert "secret" not in refused(answer, 500, "InternalError")
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    assert client.post("/v1/search", json=SEARCH).status_code == 200


def test_a_request_keeps_its_id_if_it_is_one(client):
    given = {"X-Request-ID": "my-id.1"}
    assert client.get("/healthz", headers=given).headers["x-request-id"] == "my-id.1"
    for odd in ("a b", "x" * 65, '"><script>'):
        sent = client.get("/healthz", headers={"X-Request-ID": odd}).headers["x-request-id"]
        assert sent != odd
        assert len(sent) == 32


def test_headers_keep_browsers_from_running_anything_else(client):
    headers = client.get("/").headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    page = client.get("/").text
    assert "<style" not in page
    assert " style=" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert page.count("<script") == page.count('<script type="module" src="/static/')
    sent = client.get(f"/v1/images/{client.ids[0]}/file").headers
    assert sent["content-security-policy"] == "default-src 'none'; sandbox"


def test_pages_of_other_sites_may_not_write_and_cors_is_off(serve):
    client = serve(ingest=True)
    foreign = {"Origin": "https://evil.example"}
    refused(client.post("/v1/search", json=SEARCH, headers=foreign), 403, "ForeignOrigin")
    assert "access-control-allow-origin" not in client.get("/healthz", headers=foreign).headers
    own = {"Origin": "http://testserver"}
    assert client.post("/v1/search", json=SEARCH, headers=own).status_code == 200


def test_cors_is_for_those_it_was_asked_for(serve):
    client = serve(cors_origins=("https://mine.example",), api_keys=(KEY,))
    ask = {"Origin": "https://mine.example", "Access-Control-Request-Method": "POST"}
    preflight = client.options("/v1/search", headers=ask)
    assert preflight.headers["access-control-allow-origin"] == "https://mine.example"
    ask["Origin"] = "https://evil.example"
    refused_headers = client.options("/v1/search", headers=ask).headers
    assert "access-control-allow-origin" not in refused_headers


def test_another_name_for_the_service_is_refused(serve):
    client = serve(allowed_hosts=allowed_hosts("127.0.0.1", ["testserver"]))
    assert client.get("/v1/collection").status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "", "[", "evil@localhost.example"):
        answer = client.get("/v1/collection", headers={"Host": host})
        refused(answer, 421, "UnknownHost")
    assert client.get("/v1/collection", headers={"Host": "localhost:8000"}).status_code == 200


def test_a_search_that_takes_too_long_is_given_up(serve, monkeypatch):
    client = serve(timeout=0.2)
    go_on, search_batch = threading.Event(), client.retriever.search_batch

    def slow(*args, **options):
        assert go_on.wait(60)
        return search_batch(*args, **options)

    monkeypatch.setattr(client.retriever, "search_batch", slow)
    try:
        refused(client.post("/v1/search", json=SEARCH), 504, "Timeout")
    finally:
        go_on.set()


def test_a_service_that_is_ending_is_not_ready(serve):
    client = serve()
    assert client.get("/readyz").json() == {"status": "ready"}
    client.app.state.service.batcher.close()
    refused(client.get("/readyz"), 503, "NotReady")
    refused(client.post("/v1/search", json=SEARCH), 503, "Busy")
    assert client.get("/healthz").json() == {"status": "ok"}


def test_metrics_count_what_was_asked(serve):
    client = serve()
    client.post("/v1/search", json=SEARCH)
    client.post("/v1/search", json={"text": ""})
    client.get("/no/such/path-1")
    client.get("/no/such/path-2")
    lines = client.get("/metrics").text.splitlines()
    counted = 'edje_requests_total{method="POST",route="/v1/search",status="%s"} 1.0'
    assert counted % 200 in lines
    assert counted % 422 in lines
    assert 'edje_requests_total{method="GET",route="other",status="404"} 2.0' in lines
    assert 'edje_stage_seconds_count{stage="rerank"} 1.0' in lines
    assert "edje_scored_pairs_total 12.0" in lines
    assert "edje_queue 0.0" in lines


def test_the_log_has_a_line_a_request_and_no_text(client, caplog):
    with caplog.at_level(logging.INFO, "edje_qdrant.web"):
        client.post("/v1/search", json={"text": "a private matter"})
    (record,) = [r for r in caplog.records if r.name == "edje_qdrant.web"]
    line = json.loads(JsonLines().format(record))
    assert (line["route"], line["status"], line["level"]) == ("/v1/search", 200, "info")
    assert line["ms"] > 0
    assert "private" not in caplog.text


def test_a_network_is_not_served_by_mistake():
    check_exposure("127.0.0.1", (), without_key=False)
    check_exposure("0.0.0.0", (KEY,), without_key=False)
    check_exposure("0.0.0.0", (), without_key=True)
    with pytest.raises(ConfigError, match="EDJE_QDRANT_SERVICE_KEY"):
        check_exposure("0.0.0.0", (), without_key=False)
    assert allowed_hosts("0.0.0.0", ()) is None


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"api_keys": ("short",)}, "16 characters"),
        ({"timeout": 0}, "timeout"),
        ({"max_top_k": 0}, "max_top_k"),
        ({"ingest": True}, "--images"),
    ],
)
def test_settings_that_cannot_be(options, match):
    with pytest.raises(ConfigError, match=match):
        ServiceSettings(**options)
