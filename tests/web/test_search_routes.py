from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from rounding import float16_slack, float32_slack

TEXT = "a red square"


@pytest.fixture
def client(shared):
    return shared


def hits(answer):
    assert answer.status_code == 200, answer.text
    return [hit["image_id"] for hit in answer.json()["hits"]]


def test_a_search_is_the_retrievers(client):
    answer = client.post("/v1/search", json={"text": TEXT, "top_k": 5, "num_candidates": 8}).json()
    result = client.retriever.search(TEXT, top_k=5, num_candidates=8)
    assert [hit["image_id"] for hit in answer["hits"]] == [hit.image_id for hit in result]
    slack = float32_slack([hit.score for hit in result])
    for sent, hit in zip(answer["hits"], result, strict=True):
        assert sent["score"] == pytest.approx(hit.score, abs=slack)
        assert sent["retrieval_rank"] == hit.retrieval_rank
        assert sent["payload"]["page"] == hit.payload["page"]
    assert (answer["candidates"], answer["scored"], answer["degraded"]) == (8, 8, False)
    assert set(answer["timings_ms"]) == {"queue", "encode", "retrieve", "fetch", "rerank", "total"}


def test_fewer_candidates_than_the_usual_hits_are_all_returned(client):
    found = hits(client.post("/v1/search", json={"text": TEXT, "num_candidates": 3}))
    assert len(found) == 3
    body = {"liked": found[:1], "num_candidates": 4}
    assert len(hits(client.post("/v1/recommend", json=body))) == 4
    refused = client.post("/v1/search", json={"text": TEXT, "num_candidates": 3, "top_k": 4})
    assert refused.status_code == 400


def test_the_first_stage_is_shown_beside(client):
    body = {"text": TEXT, "top_k": 4, "first_stage": True}
    answer = client.post("/v1/search", json=body).json()
    assert [hit["retrieval_rank"] for hit in answer["first_stage"]] == [1, 2, 3, 4]
    assert client.post("/v1/search", json={"text": TEXT}).json()["first_stage"] is None


@pytest.mark.parametrize(
    "filter",
    [
        {"filter": {"album": "a"}},
        {"qdrant_filter": {"must": [{"key": "album", "match": {"value": "a"}}]}},
    ],
)
def test_filters_in_either_form(client, filter):
    found = hits(client.post("/v1/search", json={"text": TEXT, "top_k": 12, **filter}))
    assert sorted(found) == sorted(client.ids[::2])


def test_every_option_of_a_search_reaches_it(client):
    options = {
        "top_k": 2, "num_candidates": 6, "fusion": "blend", "fusion_weights": [0.2, 0.8],
        "group_by": "album", "budget_ms": 5000, "min_score": -1e6, "on_missing": "first_stage",
        "collapse_duplicates": True,
    }  # fmt: skip
    answer = client.post("/v1/search", json={"text": TEXT, **options}).json()
    assert {hit["group"] for hit in answer["hits"]} == {"a", "b"}
    assert all(hit["fusion_score"] is not None for hit in answer["hits"])


def test_words_are_searched_beside_looks(serve):
    from edje_qdrant.maintenance import add_text_fields

    client = serve()
    body = {"text": "album kites", "hybrid": True, "top_k": 3}
    refused = client.post("/v1/search", json=body)
    assert refused.status_code == 400
    assert "text-fields" in refused.text
    collection = client.retriever.collection
    collection.update_payload({client.ids[7]: {"caption": "kites"}})
    add_text_fields(collection, ["caption"])
    answer = client.post("/v1/search", json={**body, "fusion_weights": [1000, 1]}).json()
    assert answer["hits"][0]["payload"]["caption"] == "kites"
    for wrong in ({"words_weight": 0}, {"adaptive": True}, {"hybrid": 1}):
        assert client.post("/v1/search", json={**body, **wrong}).status_code in (400, 422)


def test_of_near_duplicates_one_is_a_hit(client):
    options = {"text": TEXT, "top_k": 12, "num_candidates": 12}
    plain = client.post("/v1/search", json=options).json()
    assert all(hit["duplicates"] == [] for hit in plain["hits"])
    order = [hit["image_id"] for hit in plain["hits"]]
    # Everything that is more like than two images chosen by chance: a few large groups.
    collapsed = {**options, "collapse_duplicates": 1e-3}
    answer = client.post("/v1/search", json=collapsed).json()
    assert len(answer["hits"]) < 12
    listed = [i for hit in answer["hits"] for i in (hit["image_id"], *hit["duplicates"])]
    assert sorted(listed) == sorted(order)
    first = client.post("/v1/search", json={**collapsed, "top_k": 1}).json()
    rest = client.post("/v1/search/next", json={"cursor": first["cursor"], "top_k": 12}).json()
    assert [hit["duplicates"] for hit in first["hits"] + rest["hits"]] == [
        hit["duplicates"] for hit in answer["hits"]
    ]
    like = {"liked": [order[0]], "top_k": 11, "num_candidates": 11}
    answer = client.post("/v1/recommend", json={**like, "collapse_duplicates": 1e-3}).json()
    assert sum(1 + len(hit["duplicates"]) for hit in answer["hits"]) == 11
    assert any(hit["duplicates"] for hit in answer["hits"])


def test_pages_go_on_and_never_repeat(client):
    first = client.post("/v1/search", json={"text": TEXT, "top_k": 5}).json()
    second = client.post("/v1/search/next", json={"cursor": first["cursor"], "top_k": 4}).json()
    third = client.post("/v1/search/next", json={"cursor": second["cursor"], "top_k": 4}).json()
    ranked = [hit for page in (first, second, third) for hit in page["hits"]]
    assert [hit["rank"] for hit in ranked] == [*range(1, 13)]
    assert sorted(hit["image_id"] for hit in ranked) == sorted(client.ids)
    assert third["cursor"] is None
    refused = client.post("/v1/search/next", json={"cursor": first["cursor"][:-8]})
    assert (refused.status_code, refused.json()["error"]) == (400, "ConfigError")


def test_a_picture_finds_itself_first(client):
    path = sorted((client.folder / "pictures").iterdir())[3]
    found = client.post(
        "/v1/search/image",
        files={"file": ("photo.png", path.read_bytes(), "image/png")},
        data={"top_k": "3", "filter": '{"album": "b"}'},
    )
    assert hits(found)[0] == client.ids[3]
    assert found.json()["hits"][0]["score"] is None


@pytest.mark.parametrize("filter", ["[1]", "{", '{"a": {"b": 1}}', "[" * 5000])
def test_a_filter_beside_a_picture_must_be_one(client, filter):
    answer = client.post(
        "/v1/search/image", files={"file": ("a.png", b"x")}, data={"filter": filter}
    )
    assert (answer.status_code, answer.json()["error"]) == (400, "ConfigError")


def test_more_like_some_and_unlike_others(client):
    a, b, c = client.ids[:3]
    found = hits(client.post("/v1/recommend", json={"liked": [a, b], "disliked": [c]}))
    assert len(found) == 9
    assert not {a, b, c} & {*found}
    ranked = client.post("/v1/recommend", json={"liked": [a], "text": TEXT, "top_k": 2}).json()
    assert all(hit["score"] is not None for hit in ranked["hits"])


def test_rerank_has_the_shape_of_its_field(client):
    documents = client.ids[:5]
    body = {"model": "any", "query": TEXT, "documents": documents, "top_n": 3}
    answer = client.post("/v1/rerank", json={**body, "return_documents": True}).json()
    logits = client.retriever.score(TEXT, documents)
    order = np.argsort(-logits, kind="stable")[:3]
    assert [result["index"] for result in answer["results"]] == order.tolist()
    scores = [result["relevance_score"] for result in answer["results"]]
    expected = 1 / (1 + np.exp(-logits[order]))
    assert scores == pytest.approx(expected.tolist(), abs=float32_slack(logits))
    sent = [{"text": documents[n], "id": documents[n], "image": None} for n in order]
    assert [result["document"] for result in answer["results"]] == sent


def test_pictures_that_are_not_there_cannot_be_ranked(client):
    missing = "00000000-0000-4000-8000-000000000000"
    body = {"query": TEXT, "documents": [client.ids[0], missing]}
    answer = client.post("/v1/rerank", json=body)
    assert (answer.status_code, answer.json()["error"]) == (404, "TokensNotFoundError")


def test_searches_at_once_get_each_their_own_answer(serve, monkeypatch):
    client = serve()
    texts = [TEXT, "two dogs on a boat", "kites over the lake", "b"] * 3
    alone = {text: [hit.image_id for hit in client.retriever.search(text)] for text in texts}
    batcher, search_batch = client.app.state.service.batcher, client.retriever.search_batch
    sizes = []

    def held(batch, **options):
        """Hold the first batch until all others wait."""
        while not sizes and len(batch) + batcher.waiting < len(texts):
            time.sleep(0.01)
        sizes.append(len(batch))
        return search_batch(batch, **options)

    monkeypatch.setattr(client.retriever, "search_batch", held)

    def ask(text):
        return hits(client.post("/v1/search", json={"text": text}))

    with ThreadPoolExecutor(len(texts)) as pool:
        assert [*pool.map(ask, texts)] == [alone[text] for text in texts]
    metrics = client.get("/metrics").text
    assert "edje_batch_searches_sum 12.0" in metrics
    (batches,) = [x for x in metrics.splitlines() if x.startswith("edje_batch_searches_count")]
    assert float(batches.split()[1]) <= 2


def test_a_text_that_is_cut_is_reported(client):
    long = "dog " * 80
    for text, cut in ((TEXT, False), (long, True)):
        searched = client.post("/v1/search", json={"text": text, "top_k": 2}).json()
        liked = {"liked": client.ids[:1], "text": text}
        recommended = client.post("/v1/recommend", json=liked).json()
        body = {"query": text, "documents": client.ids[:2]}
        ranked = client.post("/v1/rerank", json=body).json()
        for answer in (searched, recommended, ranked):
            assert answer["truncated"] is cut
            assert ("longer than the model reads" in str(answer["reason"])) is cut
        assert searched["degraded"] is False
    following = client.post("/v1/search/next", json={"cursor": searched["cursor"]}).json()
    assert following["truncated"] is True


def test_a_picture_is_explained(client):
    answer = client.post("/v1/explain", json={"image_id": client.ids[0], "text": "a red square"})
    found = answer.json()
    assert [word["word"] for word in found["words"]] == ["a", "red", "square"]
    assert len(found["heat"]) == len(found["words"][0]["heat"]) == 4
    (score,) = client.retriever.score("a red square", client.ids[:1])
    assert found["score"] == pytest.approx(float(score), abs=float16_slack(score))


def test_an_explanation_says_when_it_cannot_be(client, monkeypatch):
    info = client.get("/v1/collection").json()
    assert (info["explain"], info["precision"]) == (True, "float32")

    class Gridless(type(client.retriever.model.encoder)):
        patch_grid = property()  # an encoder of one's own that does not tell

    monkeypatch.setattr(client.retriever.model.encoder, "__class__", Gridless)
    answer = client.post("/v1/explain", json={"image_id": client.ids[0], "text": "a"})
    assert (answer.status_code, answer.json()["error"]) == (501, "NotExplained")
    assert "encoder tiny has no patch grid" in answer.json()["message"]


def test_a_service_without_pictures_explains_nothing(serve):
    client = serve(images=None)
    assert client.get("/v1/collection").json()["explain"] is False
    answer = client.post("/v1/explain", json={"image_id": client.ids[0], "text": "a"})
    assert (answer.status_code, answer.json()["error"]) == (404, "NotFound")


def test_an_uploaded_picture_too_large_to_decode_is_refused(serve):
    client = serve(max_pixels=100)
    buffer = io.BytesIO()
    Image.new("L", (11, 10)).save(buffer, "PNG")
    answer = client.post("/v1/search/image", files={"file": ("big.png", buffer.getvalue())})
    assert (answer.status_code, answer.json()["error"]) == (422, "ImageReadError")
    assert "big.png" in answer.json()["message"]
