"""Rerank, embeddings and models in the shapes of other services' clients."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from PIL import Image
from rounding import float32_slack

from edje_qdrant.image_to_text.classify import match_texts
from edje_qdrant.web.client_schemas import Item, RerankRequest

TEXT = "a red square"


@pytest.fixture
def client(shared):
    return shared


@pytest.fixture
def files(encoded):
    return [path.read_bytes() for path in encoded[0]]


def uri(data):
    return "data:image/png;base64," + base64.b64encode(data).decode()


def part(data):
    return {"type": "image_url", "image_url": {"url": uri(data)}}


def ranked(client, documents, query=TEXT, path="/v1/rerank", **options):
    answer = client.post(path, json={"query": query, "documents": documents, **options})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client, status, body, *words, path="/v1/rerank"):
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    for word in words:
        assert word in answer.json()["detail"], answer.json()["detail"]
    assert answer.json()["detail"] == answer.json()["message"]


def scores_by_index(answer):
    return [each["score"] for each in sorted(answer["results"], key=lambda each: each["index"])]


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
def test_one_route_under_the_paths_of_all_clients(client, path):
    answer = ranked(client, client.ids[:4], path=path, top_n=2)
    assert [each["index"] for each in answer["results"]] == [
        each["index"] for each in ranked(client, client.ids[:4])["results"]
    ][:2]
    assert answer["id"]
    assert answer["object"] == "list"
    assert answer["meta"]["api_version"]["version"] == "2"


@pytest.mark.parametrize(
    "shape",
    [
        lambda data: uri(data),
        lambda data: {"image": uri(data)},
        lambda data: {"image": base64.b64encode(data).decode()},
        lambda data: {"image": base64.urlsafe_b64encode(data).decode().rstrip("=")},
        lambda data: {"image": base64.encodebytes(data).decode()},
        lambda data: {"image": {"url": uri(data)}},
        lambda data: {"image_url": uri(data)},
        lambda data: {"text": "", "image": uri(data)},
        lambda data: {"content": [part(data)]},
        lambda data: {"content": [{"type": "text", "text": ""}, part(data)]},
        lambda data: {"role": "user", "content": [part(data)]},
        lambda data: part(data),
        lambda data: [part(data)],
        lambda data: {"type": "input_image", "image_url": uri(data)},
        lambda data: {"type": "image", "image": uri(data)},
    ],
)
def test_an_image_in_every_shape_has_the_score_of_the_stored_one(client, files, shape):
    answer = ranked(client, [client.ids[5], shape(files[5])], return_documents=True)
    stored, sent = scores_by_index(answer)
    assert sent == pytest.approx(stored, abs=float32_slack(stored))
    documents = {each["index"]: each["document"] for each in answer["results"]}
    assert documents[1] == {"text": "", "id": client.ids[5], "image": None}


@pytest.mark.parametrize(
    "shape",
    [
        lambda value: value,
        lambda value: value.upper(),
        lambda value: {"text": value},
        lambda value: {"image": value},
        lambda value: {"content": value},
        lambda value: {"content": [{"type": "text", "text": value}]},
    ],
)
def test_an_id_in_every_shape(client, shape):
    documents = [shape(image_id) for image_id in client.ids[:4]]
    logits = client.retriever.score(TEXT, client.ids[:4])
    answer = ranked(client, documents, query={"text": TEXT}, return_documents=True)
    assert scores_by_index(answer) == pytest.approx(logits.tolist(), abs=float32_slack(logits))
    assert {each["document"]["id"] for each in answer["results"]} == {*client.ids[:4]}


def test_paths_as_stored_and_as_the_service_shows_them(client):
    names = ["picture-0003.png", str(client.folder / "pictures" / "picture-0001.png")]
    answer = ranked(client, [*names, client.ids[0]], return_documents=True)
    found = {each["index"]: each["document"] for each in answer["results"]}
    assert [found[row]["id"] for row in range(3)] == [client.ids[n] for n in (3, 1, 0)]
    assert found[0]["text"] == names[0]


def test_paths_need_no_image_folder(serve):
    client = serve(images=None)
    path = str(client.folder / "pictures" / "picture-0001.png")
    assert len(ranked(client, [path])["results"]) == 1
    refused(client, 400, {"query": TEXT, "documents": ["picture-0001.png"]}, "documents.0")


def test_fields_of_other_services_are_ignored(client):
    options = {
        "model": "rerank-v3.5", "user": "me", "max_tokens_per_doc": 512, "max_chunks_per_doc": 3,
        "rank_fields": ["text"], "truncation": True, "priority": 0, "instruction": "x",
        "return_documents": None, "top_n": None, "overlap_tokens": 1, "truncate_prompt_tokens": -1,
        "additional_data": {"a": 1}, "raw_scores": False, "mm_processor_kwargs": None,
    }  # fmt: skip
    answer = ranked(client, client.ids[:3], **options)
    assert [each["document"] for each in answer["results"]] == [None] * 3
    assert len(ranked(client, client.ids[:3], top_k=2)["results"]) == 2
    assert len(ranked(client, client.ids[:3], top_k=2, top_n=1)["results"]) == 1


def test_text_embeddings_inference_gets_its_own_shape(client):
    body = {"query": TEXT, "texts": client.ids[:4], "truncate": True}
    plain = client.post("/rerank", json=body).json()
    raw = client.post("/rerank", json={**body, "raw_scores": True, "return_text": True}).json()
    logits = client.retriever.score(TEXT, client.ids[:4])
    assert [each["index"] for each in plain] == np.argsort(-logits, kind="stable").tolist()
    for each in raw:
        assert each["score"] == pytest.approx(logits[each["index"]], abs=float32_slack(logits))
        assert each["text"] == client.ids[each["index"]]
    for each in plain:
        expected = 1 / (1 + np.exp(-logits[each["index"]]))
        assert each["score"] == pytest.approx(expected, abs=float32_slack(logits))
        assert each["text"] is None
    refused(client, 422, {"query": TEXT, "texts": ["a"], "documents": ["a"]}, "documents, or texts")
    refused(client, 422, {"query": TEXT}, "documents, or texts")


@pytest.mark.parametrize("documents", [["a"], ["A long text.\n" * 300], [{"text": "a.png"}]])
def test_a_text_that_names_no_image_is_refused_not_scored(client, documents):
    body = {"query": TEXT, "documents": [client.ids[0], *documents]}
    refused(client, 400, body, "documents.1 is a text,", "scores texts against images", "data URI")
    refused(client, 400, {"query": TEXT, "texts": [*documents, "b"]}, "texts.0 is a text", "1 more")


def test_texts_are_ranked_by_an_image(client, files, tiny_model, encoded):
    texts = ["a red square", "two dogs", "kites over the lake"]
    matches = match_texts(tiny_model, Image.open(encoded[0][2]), texts)
    expected = [match.score for match in sorted(matches, key=lambda match: match.index)]
    for query in ({"image": uri(files[2])}, uri(files[2]), {"content": [part(files[2])]},
                  {"image": client.ids[2]}):  # fmt: skip
        answer = ranked(client, texts, query=query, return_documents=True)
        assert scores_by_index(answer) == pytest.approx(expected, abs=float32_slack(expected))
        best = answer["results"][0]
        assert best["document"]["text"] == texts[best["index"]]
    long = ranked(client, ["a", "dog " * 80], query=uri(files[2]))
    assert (long["truncated"], long["reason"].startswith("documents.1: ")) == (True, True)


def test_an_image_is_not_ranked_by_an_image(client, files):
    body = {"query": {"image": uri(files[2])}, "documents": ["a", {"image": uri(files[1])}]}
    refused(client, 400, body, "documents.1 is an image", "/v1/search/image")
    missing = {"image": "00000000-0000-4000-8000-000000000000"}
    refused(client, 404, {"query": missing, "documents": ["a"]})


@pytest.mark.parametrize(
    ("document", "word"),
    [
        (1, "give a text"),
        (None, "give a text"),
        (True, "give a text"),
        ("", "empty"),
        ({}, "empty"),
        ([], "empty"),
        ({"content": []}, "empty"),
        ({"content": 1}, "content"),
        ({"text": 1}, "text"),
        ({"text": ["a"]}, "text"),
        ({"image": 1}, "image"),
        ({"image": ""}, "image"),
        ({"image": {"url": 1}}, "image"),
        ({"image_url": {"href": "a"}}, "empty"),
        ({"text": "a caption", "image": "QUJD"}, "a text and an image"),
        ({"content": [{"type": "video_url", "video_url": {"url": "a"}}]}, "video_url"),
        ({"content": [{"text": "a"}, {"text": "b"}]}, "2 parts"),
    ],
)
def test_a_document_of_no_shape_is_named(client, document, word):
    body = {"query": TEXT, "documents": [client.ids[0], document]}
    refused(client, 422, body, "documents.1: ", word)


@pytest.mark.parametrize(
    ("image", "word"),
    [
        ("***", "no base64"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png,abc", "data URI"),
        ("data:image/svg+xml;base64,PHN2Zy8+", "documents.1"),
        ("QUJD", "documents.1"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(client, image, word):
    body = {"query": TEXT, "documents": [client.ids[0], {"image": image}]}
    refused(client, 422, body, "documents.1", word)


def test_errors_do_not_repeat_images(client, files):
    broken = base64.b64encode(files[0][:40] * 2000).decode()
    for body in ({"query": TEXT, "documents": [{"image": broken}]},
                 {"query": TEXT, "documents": [{"image": broken, "text": "a"}]},
                 {"input": [{"image": broken}]}):  # fmt: skip
        path = "/v1/embeddings" if "input" in body else "/v1/rerank"
        answer = client.post(path, json=body)
        assert answer.status_code == 422
        assert len(answer.text) < 1500


def test_embeddings_are_those_of_the_first_stage(client, files, tiny_model, encoded):
    body = {"model": "any", "input": [TEXT, {"image": uri(files[3])}, {"text": "b"}], "user": "me"}
    answer = client.post("/v1/embeddings", json=body).json()
    vectors = np.array([each["embedding"] for each in answer["data"]], np.float32)
    texts = tiny_model.encode_texts([TEXT, "b"])
    np.testing.assert_allclose(vectors[[0, 2]], texts, atol=1e-5)
    np.testing.assert_allclose(vectors[1], encoded[2].embeddings[3], atol=1e-5)
    packed = client.post("/v1/embeddings", json={**body, "encoding_format": "base64"}).json()
    for each, vector in zip(packed["data"], vectors, strict=True):
        read = np.frombuffer(base64.b64decode(each["embedding"]), "<f4")
        np.testing.assert_allclose(read, vector, atol=1e-6)
    width = vectors.shape[1]
    message = {"messages": [{"role": "user", "content": [part(files[3])]}], "dimensions": width}
    (one,) = client.post("/v1/embeddings", json=message).json()["data"]
    np.testing.assert_allclose(one["embedding"], vectors[1], atol=1e-5)


def test_many_texts_keep_their_order(client):
    texts = [f"text {'abcdefgh'[n % 8]}" for n in range(150)]
    data = client.post("/v1/embeddings", json={"input": texts}).json()["data"]
    vectors = np.array([each["embedding"] for each in data])
    np.testing.assert_allclose(vectors[:8], vectors[72:80], atol=1e-5)
    assert [each["index"] for each in data] == [*range(150)]


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"input": [1, 2, 3]}, 422, "check_embedding_ctx_length"),
        ({"input": [[1, 2], [3]]}, 422, "token ids"),
        ({"input": []}, 422, "empty"),
        ({"input": ["a", ""]}, 422, "input 1"),
        ({"input": None}, 422, "give input"),
        ({}, 422, "give input"),
        ({"input": "a", "messages": []}, 422, "one message"),
        ({"messages": [{"content": "a"}, {"content": "b"}]}, 422, "one message"),
        ({"input": "a", "dimensions": 3}, 400, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, 422, "base64"),
        ({"input": "a" * 1001}, 400, "1000 characters"),
        ({"input": ["a"] * 1001}, 400, "at most 1000"),
        ({"input": "!"}, 400, "text"),
    ],
)
def test_inputs_that_cannot_be_encoded(client, body, status, word):
    refused(client, status, body, word, path="/v1/embeddings")


def test_a_cut_input_is_reported(client):
    answer = client.post("/v1/embeddings", json={"input": ["a", "dog " * 80]}).json()
    assert answer["truncated"] is True
    assert answer["reason"].startswith("input.1: ")


def test_the_model_is_listed(client, monkeypatch):
    monkeypatch.setattr(client.retriever.model, "name_or_path", "/home/me/models/mine")
    (model,) = client.get("/v1/models").json()["data"]
    assert model == {"id": "mine", "object": "model", "created": 0, "owned_by": "edje-qdrant"}
    assert client.get("/v1/models/mine").json() == model
    monkeypatch.setattr(client.retriever.model, "name_or_path", "me/mine")
    assert client.get("/v1/models/me/mine").json()["id"] == "me/mine"
    assert ranked(client, client.ids[:1])["model"] == "me/mine"
    answer = client.get("/v1/models/gpt-4")
    assert (answer.status_code, answer.json()["error"]) == (404, "NotFound")


def test_limits_of_a_request(serve, files):
    client = serve(max_images=2, max_candidates=3)
    documents = [{"image": uri(data)} for data in files[:3]]
    refused(client, 400, {"query": TEXT, "documents": documents}, "may hold 2 images")
    refused(client, 400, {"query": TEXT, "documents": client.ids[:4]}, "documents", "at most 3")
    refused(client, 400, {"query": TEXT, "texts": client.ids[:4]}, "texts", "at most 3")
    refused(client, 400, {"query": "a" * 1001, "documents": client.ids[:1]}, "1000 characters")


def test_only_a_body_with_images_may_be_as_large_as_uploads(serve, files):
    client = serve(max_body_bytes=2000, max_upload_bytes=40_000)
    long = {"query": TEXT, "documents": client.ids[:1], "x": "a" * 3000}
    for path in ("/v1/rerank", "/rerank", "/v2/rerank"):
        assert client.post(path, json=long).status_code == 200
        assert client.post(path, json={**long, "x": "a" * 41_000}).status_code == 413
    assert client.post("/v1/embeddings", json={"input": "a", "x": "a" * 3000}).status_code == 200
    answer = client.post("/v1/search", json={"text": TEXT, "filter": {"a": "a" * 3000}})
    assert answer.status_code == 413


def test_answers_are_not_cached_by_browsers(client):
    for path in ("/rerank", "/v2/rerank", "/v1/rerank"):
        answer = client.post(path, json={"query": TEXT, "documents": client.ids[:1]})
        assert answer.headers["cache-control"] == "no-store"


def test_an_item_is_a_text_or_an_image():
    request = RerankRequest.model_validate({"query": "a", "documents": ["b", {"image": "QUJD"}]})
    assert request.documents == [Item(text="b"), Item(image="QUJD")]
