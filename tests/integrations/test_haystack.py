from __future__ import annotations

import asyncio
import base64
import gc
from importlib.util import find_spec
from pathlib import Path

import pytest
from filter_kinds import filters
from gallery_checks import TEXT, Gallery, check_fields, check_refused_alike, other_order
from hypothesis import given
from index_stand_in import StandIn
from lazy import Lazy
from qdrant_client import models
from rounding import float32_slack

from edje_qdrant.attach.attach_tokens import attach_tokens
from edje_qdrant.attach.attached_collection import AttachedCollection
from edje_qdrant.errors import (
    CollectionLockedError,
    CollectionNotFoundError,
    ConfigError,
    TokensNotFoundError,
)

if find_spec("haystack") is None:
    pytest.skip("needs the extra haystack", allow_module_level=True)

haystack = Lazy("haystack")
core_errors = Lazy("haystack.core.errors")
utils = Lazy("haystack.utils")
ours = Lazy("edje_qdrant.integrations.haystack")


@pytest.fixture
def place(gallery: Gallery) -> dict[str, str]:
    """What names the collection; its model is found by the name that it keeps."""
    return {"location": str(gallery.folder), "device": "cpu"}


def test_documents_hold_what_a_search_finds(gallery: Gallery, place: dict[str, str]) -> None:
    with gallery.open() as opened:
        hits = opened.search(TEXT, top_k=5)
    plug = ours.EDJERetriever(**place, top_k=5)
    documents = plug.run(query=TEXT)["documents"]
    assert [d.id for d in documents] == [hit.image_id for hit in hits]
    assert [d.content for d in documents] == [hit.payload["path"] for hit in hits]
    scores = [hit.score for hit in hits]
    assert [d.score for d in documents] == pytest.approx(scores, abs=float32_slack(scores))
    for document, hit in zip(documents, hits, strict=True):
        check_fields(document.meta, hit)
    assert asyncio.run(plug.run_async(query=TEXT)) == {"documents": documents}
    assert plug.run(query=TEXT, top_k=2)["documents"] == documents[:2]
    some = plug.run(query=TEXT, search_kwargs={"filter": {"path": documents[3].content}})
    assert [d.id for d in some["documents"]] == [documents[3].id]
    with pytest.raises(ConfigError, match="top_k is 0"):
        plug.run(query=TEXT, top_k=0)


def test_a_pipeline_on_one_folder_is_written_and_read_back(place: dict[str, str]) -> None:
    pipeline = haystack.Pipeline()
    pipeline.add_component(
        "retriever", ours.EDJERetriever(**place, top_k=12, content_field="width")
    )
    pipeline.add_component("ranker", ours.EDJERanker(**place, top_k=4))
    pipeline.connect("retriever.documents", "ranker.documents")
    asked = {"retriever": {"query": TEXT}, "ranker": {"query": TEXT}}
    found = pipeline.run(asked)["ranker"]["documents"]
    assert len(found) == 4
    text = pipeline.dumps()
    with pytest.raises(core_errors.DeserializationError):  # Haystack trusts no module unasked
        haystack.Pipeline.loads(text)
    again = haystack.Pipeline.loads(text, allowed_modules=["edje_qdrant.integrations.haystack"])
    assert again.run(asked)["ranker"]["documents"] == found
    assert again.dumps() == text
    assert again.get_component("retriever").content_field == "width"


def test_a_collection_is_let_go_with_the_last_component(
    gallery: Gallery, place: dict[str, str]
) -> None:
    first, second = ours.EDJERetriever(**place), ours.EDJERanker(**place)
    first.warm_up()
    first.warm_up()
    second.warm_up()
    with pytest.raises(CollectionLockedError):
        gallery.open()
    first.close()
    first.close()
    with pytest.raises(CollectionLockedError):
        gallery.open()
    del second
    gc.collect()
    gallery.open().close()
    assert first.run(query=TEXT)["documents"]  # a closed one opens again
    first.close()


def test_documents_are_reranked(place: dict[str, str]) -> None:
    best = ours.EDJERetriever(**place, top_k=12).run(query=TEXT)["documents"]
    given = [
        haystack.Document(id=f"doc-{n}", content=str(n), meta={"picture": d.id})
        for n, d in other_order(best)
    ]
    ranker = ours.EDJERanker(**place, id_key="picture")
    reranked = ranker.run(query=TEXT, documents=given)["documents"]
    assert [d.id for d in reranked] == [f"doc-{n}" for n in range(12)]
    scores = [d.score for d in best]
    assert [d.score for d in reranked] == pytest.approx(scores, abs=float32_slack(scores))
    assert [d.meta["rank"] for d in reranked] == [*range(1, 13)]
    assert all(d.score is None and "rank" not in d.meta for d in given)
    assert ranker.run(query=TEXT, documents=given, top_k=2)["documents"] == reranked[:2]
    assert asyncio.run(ranker.run_async(query=TEXT, documents=given)) == {"documents": reranked}
    assert ranker.run(query=TEXT, documents=[])["documents"] == []
    with pytest.raises(ConfigError, match="has no 'picture'"):
        ranker.run(query=TEXT, documents=best)
    unknown = "00000000-0000-4000-8000-000000000000"
    with pytest.raises(TokensNotFoundError, match=unknown):
        ranker.run(query=TEXT, documents=[haystack.Document(content="", meta={"picture": unknown})])


def test_a_collection_of_their_own_is_reranked(gallery: Gallery) -> None:
    with StandIn() as server:
        server.client.create_collection(
            "mine", vectors_config=models.VectorParams(size=1, distance=models.Distance.DOT)
        )
        server.client.upsert(
            "mine",
            [
                models.PointStruct(id=n, vector=[1.0], payload={"path": str(path)})
                for n, path in enumerate(gallery.paths)
            ],
        )
        attach_tokens(server.url, "mine", gallery.model, progress=False)
        ranker = ours.EDJERanker(server.url, "mine", attached=True, device="cpu")
        given = [haystack.Document(content=str(n), meta={"image_id": n}) for n in range(12)]
        reranked = ranker.run(query=TEXT, documents=given)["documents"]
        with AttachedCollection.open(server.url, "mine", model=gallery.model) as opened:
            expected = opened.score(TEXT, [*range(12)])
        ranker.close()
    assert [d.content for d in reranked] == [str(n) for n in (-expected).argsort(kind="stable")]


def test_a_key_is_written_by_its_variables_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "do not write this")
    for kind in (ours.EDJERetriever, ours.EDJERanker):
        key = utils.Secret.from_env_var("MY_KEY")
        plug = kind("http://localhost:6333", api_key=key, precision="bfloat16")
        data = plug.to_dict()
        assert data["init_parameters"]["precision"] == "bfloat16"
        assert "do not write this" not in str(data)
        again = kind.from_dict(data)
        assert again.to_dict() == plug.to_dict()
        assert again._api_key.resolve_value() == "do not write this"


def test_a_collection_that_is_not_there_is_named(tmp_path: object) -> None:
    plug = ours.EDJERetriever(str(tmp_path), "nothing")
    with pytest.raises(CollectionNotFoundError, match="nothing"):
        plug.warm_up()


@given(filter=filters)
def test_a_retriever_with_a_filter_of_qdrants_is_written_and_read_back(
    filter: models.Filter,
) -> None:
    plug = ours.EDJERetriever("nowhere", search_kwargs={"filter": filter})
    pipeline = haystack.Pipeline()
    pipeline.add_component("retriever", plug)
    text = pipeline.dumps()
    trusted = ["edje_qdrant.integrations.haystack"]
    again = haystack.Pipeline.loads(text, allowed_modules=trusted).get_component("retriever")
    read: models.Filter = again.search_kwargs["filter"]
    assert read.model_dump_json() == filter.model_dump_json()
    assert again.to_dict() == plug.to_dict()


def test_a_component_of_all_options_is_written_and_read_back(place: dict[str, str]) -> None:
    options = {"fusion": "rrf", "fusion_weights": (1.0, 2.0), "filter": {"width": [50, 51]}}
    plug = ours.EDJERetriever(
        Path(place["location"]), model=Path("demo"), top_k=4, search_kwargs=options
    )
    pipeline = haystack.Pipeline()
    pipeline.add_component("retriever", plug)
    again = haystack.Pipeline.loads(
        pipeline.dumps(), allowed_modules=["edje_qdrant.integrations.haystack"]
    ).get_component("retriever")
    assert again.search_kwargs == {**options, "fusion_weights": [1.0, 2.0]}
    assert again.to_dict() == plug.to_dict()


def test_a_filter_of_qdrants_reaches_the_search(place: dict[str, str]) -> None:
    plug = ours.EDJERetriever(**place, top_k=12)
    every = plug.run(query=TEXT)["documents"]
    path = every[4].content
    condition = models.FieldCondition(key="path", match=models.MatchValue(value=path))
    as_json = {"qdrant_filter": {"must": [{"key": "path", "match": {"value": path}}]}}
    for filter in (models.Filter(must=[condition]), as_json):
        found = plug.run(query=TEXT, search_kwargs={"filter": filter})["documents"]
        assert [d.id for d in found] == [every[4].id]
    with pytest.raises(ConfigError, match=r"filter\.must"):
        plug.run(query=TEXT, search_kwargs={"filter": {"qdrant_filter": {"must": 3}}})
    plug.close()


def test_haystacks_converter_reads_the_images(gallery: Gallery, place: dict[str, str]) -> None:
    pytest.importorskip("pypdfium2", reason="needs pypdfium2, which Haystack's converter asks for")
    from haystack.components.converters.image import DocumentToImageContent

    pipeline = haystack.Pipeline()
    pipeline.add_component("retriever", ours.EDJERetriever(**place, top_k=3))
    pipeline.add_component("images", DocumentToImageContent())
    pipeline.connect("retriever.documents", "images.documents")
    contents = pipeline.run({"retriever": {"query": TEXT}})["images"]["image_contents"]
    files = {base64.b64encode(path.read_bytes()).decode() for path in gallery.paths}
    assert len(contents) == 3
    assert {content.base64_image for content in contents} <= files
    pipeline.get_component("retriever").close()


def test_a_wrong_option_is_refused_alike_everywhere(place: dict[str, str]) -> None:
    for options in ({"topk": 3}, {"num_candidates": 0}, {"filter": 3}):
        with pytest.raises(ConfigError):  # before the collection is opened
            ours.EDJERetriever("nowhere", search_kwargs=options)
    plug, ranker = ours.EDJERetriever(**place), ours.EDJERanker(**place)
    document = haystack.Document(content="", meta={"image_id": "x"})
    for calls in (
        (
            lambda: plug.run(query=TEXT, search_kwargs={"topk": 3}),
            lambda: plug.run_async(query=TEXT, search_kwargs={"topk": 3}),
        ),
        (lambda: plug.run(query=TEXT, top_k=0), lambda: plug.run_async(query=TEXT, top_k=0)),
        (lambda: plug.run(query="!"), lambda: plug.run_async(query="!")),
        (
            lambda: ranker.run(query=TEXT, documents=[document], top_k=0),
            lambda: ranker.run_async(query=TEXT, documents=[document], top_k=0),
        ),
    ):
        check_refused_alike(ConfigError, *calls)
    plug.close()
    ranker.close()
