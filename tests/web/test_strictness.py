"""Requests of the wrong form: a clear answer, never a 500, and nothing changed in silence."""

from __future__ import annotations

import json

import pytest

TEXT = {"text": "a red square"}
NOT_THERE = "00000000-0000-4000-8000-000000000000"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def client(shared):
    return shared


def refused(answer, status, *words):
    assert answer.status_code == status, (answer.status_code, answer.text)
    body = answer.json()
    assert set(body) == {"error", "message", "detail", "request_id"}
    for word in words:
        assert word in body["message"], body["message"]
    assert "Value error" not in body["message"]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("top_k", True, "integer"),
        ("top_k", "2", "integer"),
        ("top_k", 2.5, "integer"),
        ("num_candidates", True, "integer"),
        ("num_candidates", "20", "integer"),
        ("min_score", False, "auto"),
        ("min_score", "0.5", "auto"),
        ("budget_ms", True, "number"),
        ("budget_ms", "200", "number"),
        ("adaptive", "yes", "boolean"),
        ("adaptive", 1, "boolean"),
        ("collapse_duplicates", "true", "boolean"),
        ("collapse_duplicates", 0, "greater than 0"),
        ("collapse_duplicates", 2, "less than or equal to 1"),
        ("first_stage", "true", "boolean"),
        ("fusion_weights", [True, 1], "number"),
        ("fusion_weights", ["1", 1], "number"),
        ("group_by", 1, "string"),
        ("text", 1, "string"),
        ("filter", {"a": 1.5}, "whole number"),
        ("filter", {"a": [1, None]}, "whole number"),
        ("filter", [], "dictionary"),
    ],
)
def test_a_wrong_type_is_not_taken_for_a_right_one(client, field, value, said):
    refused(client.post("/v1/search", json={**TEXT, field: value}), 422, field, said)


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("search/next", {"cursor": "abc", "top_k": True}),
        ("recommend", {"liked": [NOT_THERE], "top_k": "1"}),
        ("recommend", {"liked": NOT_THERE}),
        ("rerank", {"query": "a", "documents": [NOT_THERE], "top_n": True}),
        ("rerank", {"query": "a", "documents": [1]}),
        ("explain", {"image_id": 1, "text": "a"}),
    ],
)
def test_so_on_every_route(client, route, body):
    refused(client.post(f"/v1/{route}", json=body), 422)


def test_a_whole_number_may_be_written_with_a_point(client):
    answer = client.post("/v1/search", json={**TEXT, "top_k": 2.0, "filter": {"page": [3.0, 4]}})
    assert len(answer.json()["hits"]) == 2


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ({"key": "page", "range": {"gt": True}}, "number"),
        ({"key": "page", "range": {"gt": "2"}}, "date"),
        ({"key": "page", "values_count": {"gt": "1"}}, "integer"),
        ({"key": "page", "is_null": 1}, "boolean"),
    ],
)
def test_a_condition_is_not_guessed(client, condition, said):
    body = {**TEXT, "qdrant_filter": {"must": [condition]}}
    refused(client.post("/v1/search", json=body), 400, said)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b'{"text": "a", "min_score": NaN}', "NaN"),
        (b'{"text": "a", "min_score": -Infinity}', "Infinity"),
        (b'{"text": "a", "min_score": 1e400}', "1e400"),
        (b'{"text": "a", "filter": {"page": 18446744073709551617}}', "64 bits"),
        (b'{"text": "a", "top_k": ' + b"9" * 5000 + b"}", "64 bits"),
        (b'{"text": "a", "filter": {"\\ud800": 1}}', "surrogate"),
        (b'{"text": "a", "filter": {"a": "\\udfff"}}', "surrogate"),
        (b'{"text": "\\ud83d"}', "surrogate"),
        (b'{"text": "a", "group_by": "\\ud800"}', "surrogate"),
        (b'{"\\ud800": 1}', "surrogate"),
        (b'{"text": "a", "qdrant_filter": {"must": [{"\\ud800": NaN}]}}', "NaN"),
        (b'{"text": "\xff"}', "UTF-8"),
        (b"[" * 100_000, "deep"),
        (b"{", "JSON"),
        (b"", ""),
        (b"null", ""),
    ],
)
def test_json_that_cannot_be_kept_as_it_is(client, written, said):
    refused(client.post("/v1/search", content=written, headers=JSON), 422, said)


@pytest.mark.parametrize("route", ["recommend", "rerank", "explain", "search/next"])
def test_half_a_character_on_every_route(client, route):
    body = b'{"liked": ["\\ud800"], "cursor": "\\ud800", "query": "\\ud800", "\\ud800": 1}'
    refused(client.post(f"/v1/{route}", content=body, headers=JSON), 422)


def test_half_a_character_in_a_form(client, encoded):
    path = encoded[0][0]
    for data in ({"filter": '{"\\ud800": 1}'}, {"filter": '{"a": 18446744073709551617}'}):
        answer = client.post(
            "/v1/search/image", files={"file": ("a.png", path.read_bytes())}, data=data
        )
        refused(answer, 400, "filter")


def test_fields_of_uploads_are_read_as_strictly(serve):
    client = serve(ingest=True)
    for fields in ('{"a": NaN}', '{"a": "\\ud800"}', '{"a": 18446744073709551617}', "[1]", "{"):
        answer = client.post(
            "/v1/ingest", files={"files": ("a.png", b"x")}, data={"fields": fields}
        )
        refused(answer, 400, "fields")


@pytest.mark.parametrize("text", ["True", "2.5", "-1", "0", "1_0", "२", "", " "])
@pytest.mark.parametrize("where", ["form", "query"])
def test_numbers_of_forms_and_addresses_are_digits(client, encoded, where, text):
    if where == "query":
        answer = client.get("/v1/images", params={"limit": text})
    elif text == "":
        return  # an empty field of a form is one that was left out
    else:
        files = {"file": ("a.png", encoded[0][0].read_bytes())}
        answer = client.post("/v1/search/image", files=files, data={"top_k": text})
    refused(answer, 422)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://["},
        {"Origin": "http://[::1"},
        {"Origin": "null"},
        {"Origin": "http://a]b"},
        {"Origin": "é".encode()},
        {"Origin": ""},
    ],
)
def test_an_origin_that_is_none_is_a_foreign_one(client, headers):
    refused(client.post("/v1/search", json=TEXT, headers=headers), 403, "origins")


@pytest.mark.parametrize("host", ["[", "a]b", "é".encode(), "", "a b", "[::1]:x", "%00"])
@pytest.mark.parametrize("path", ["/v1/collection", "/v1/collection/", "/", "/static/none"])
def test_a_strange_host_is_no_failure(client, host, path):
    assert client.get(path, headers={"Host": host}).status_code < 500


@pytest.mark.parametrize(
    ("header", "value", "statuses"),
    [
        ("Content-Type", "multipart/form-data", {400, 422}),
        ("Content-Type", "multipart/form-data; boundary=", {400, 422}),
        ("Content-Type", "multipart/form-data; boundary=é".encode(), {400, 422}),
        ("Content-Type", "application/json; charset=utf-7", {200, 422}),
        ("Content-Type", "application/\xff".encode("latin-1"), {422}),
        ("Content-Type", ";;;", {422}),
        ("Content-Length", "9" * 5000, {413}),
        ("Content-Length", "-1", {400}),
        ("Content-Length", "1e3", {400}),
        ("Content-Length", "²", {400}),
    ],
)
def test_strange_headers_of_a_body(client, header, value, statuses):
    body = json.dumps(TEXT).encode()
    value = value.encode() if isinstance(value, str) else value
    for route in ("search", "search/image"):
        headers = {"Content-Type": "application/json", header: value}
        answer = client.post(f"/v1/{route}", content=body, headers=headers)
        assert answer.status_code in statuses | {422}, (route, answer.status_code, answer.text)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/images/%00", "/v1/images/%ff", "/v1/images/%2e%2e%2fx/file", "/v1/images/%",
        "/static/%00", "/static/%ff", "/static/..%2f..%2fapp.py", "/static/%2e%2e/app.py",
        "/%ed%a0%80", "/v1/images/a%0d%0ab/thumbnail",
    ],
)  # fmt: skip
def test_strange_paths_name_nothing(client, path):
    refused(client.get(path), 404)


def test_unknown_ids_are_not_found_everywhere(client):
    known = client.ids[0]
    bodies = {
        "recommend": [{"liked": [NOT_THERE]}, {"liked": [known], "disliked": [NOT_THERE]}],
        "rerank": [{"query": "a", "documents": [known, NOT_THERE]}],
        "explain": [{"image_id": NOT_THERE, "text": "a"}],
    }
    for route, several in bodies.items():
        for body in several:
            refused(client.post(f"/v1/{route}", json=body), 404)
    for image_id in (NOT_THERE, "no-id", "1"):
        for path in ("", "/file", "/thumbnail"):
            refused(client.get(f"/v1/images/{image_id}{path}"), 404)


def test_an_id_has_the_form_of_one(client):
    for body in ({"liked": ["no-id"]}, {"liked": [client.ids[0] + "\n"]}):
        refused(client.post("/v1/recommend", json=body), 422, "liked", "UUID")
    upper = client.ids[0].upper()
    assert client.post("/v1/recommend", json={"liked": [upper]}).status_code == 200


def test_the_document_promises_what_the_service_keeps(serve):
    client = serve(max_top_k=7, max_candidates=50, max_files=3, max_text=80, ingest=True)
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    search, rerank = (schemas[name]["properties"] for name in ("SearchRequest", "RerankRequest"))
    assert (search["top_k"]["minimum"], search["top_k"]["maximum"]) == (1, 7)
    assert search["num_candidates"]["anyOf"][0]["maximum"] == 50
    assert search["text"]["maxLength"] == rerank["query"]["anyOf"][0]["maxLength"] == 80
    assert search["qdrant_filter"]["anyOf"][0]["properties"].keys() >= {"must", "should"}
    assert search["filter"]["anyOf"][0]["additionalProperties"]["anyOf"]
    for name in ("documents", "texts"):
        assert rerank[name]["anyOf"][0]["maxItems"] == 50
        assert [form["type"] for form in rerank[name]["anyOf"][0]["items"]["anyOf"]] == [
            "string",
            "object",
            "array",
        ]
    files = schemas["Body_ingest_v1_ingest_post"]["properties"]["files"]
    assert (files["minItems"], files["maxItems"]) == (1, 3)
    for name in ("Hit", "Picture", "Explained", "ExplainRequest"):
        assert schemas[name]["properties"]["image_id"]["format"] == "uuid"


def test_no_answer_repeats_an_image(client):
    image = 114_000 * "A"
    for body in ({**TEXT, image: 1}, {**TEXT, "fusion": image}, {**TEXT, "min_score": image}):
        answer = client.post("/v1/search", json=body)
        assert answer.status_code == 422
        assert len(answer.content) < 2_000
