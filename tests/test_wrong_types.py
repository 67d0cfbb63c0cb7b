"""Arguments of wrong types: an error of the package that names the argument, never a bare one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from qdrant_client import QdrantClient
from searching import encoding_of, make_collection, numbered_id

import edje_qdrant as package
from edje_qdrant.errors import EdjeError
from edje_qdrant.integrations.cross_encoder import EDJECrossEncoder
from edje_qdrant.model import EDJEModel
from edje_qdrant.types import ImageEncoding
from edje_qdrant.web.settings import ServiceSettings

WRONG: list[Any] = [None, 3, "text", b"x", [object()], {"a": 1}]

Call = tuple[Callable[..., Any], dict[str, Any]]


@pytest.fixture(scope="module")
def calls(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: EDJEModel, tiny_folder: Path
) -> Iterator[dict[str, Call]]:
    """Public calls with arguments that are right."""
    folder = tmp_path_factory.mktemp("types")
    model, image, known = tiny_model, Image.new("RGB", (32, 32)), numbered_id(0)
    collection = make_collection(folder / "index", model)
    captions = package.CaptionCollection.create(":memory:", "captions", model.contract())
    encoding = encoding_of(model)
    tokens, embeddings = encoding.tokens[:1], encoding.embeddings[:1]
    retriever = package.TwoStageRetriever(collection, model)
    of_captions = package.CaptionRetriever(captions, model)
    of_captions.add(["a cat", "a dog"])
    encoder = EDJECrossEncoder(model, collection=retriever)
    result = retriever.search("a", top_k=1)
    Image.new("RGB", (20, 20)).save(folder / "a.png")
    (folder / "pairs.jsonl").write_text('{"image": "a.png", "caption": "a"}')
    nowhere = str(folder / "nowhere")
    explanation = package.explain_match(model, "a", image)
    client = QdrantClient(":memory:")

    def asearch(**options: Any) -> Any:
        return asyncio.run(retriever.asearch(**options))

    given: dict[str, Call] = {
        "search": (retriever.search, {
            "text": "a", "top_k": 1, "num_candidates": 2, "filter": None, "fusion": "rerank",
            "fusion_weights": None, "group_by": None, "budget_ms": 1000, "adaptive": False,
            "min_score": None, "on_missing": "error", "collapse_duplicates": True,
        }),
        "asearch": (asearch, {"text": "a", "top_k": 1}),
        "search_batch": (retriever.search_batch, {"texts": ["a"]}),
        "search_by_image": (
            retriever.search_by_image,
            {
                "image": image, "top_k": 1, "filter": None, "group_by": None,
                "collapse_duplicates": False,
            },
        ),
        "recommend": (retriever.recommend, {
            "liked": [known], "disliked": [], "text": None, "top_k": 1, "num_candidates": 3,
            "filter": None, "strategy": "average_vector", "on_missing": "error",
            "collapse_duplicates": False,
        }),
        "retriever.score": (retriever.score, {"text": "a", "image_ids": [known]}),
        "explain": (retriever.explain, {"text": "a", "image_id": known, "image": image}),
        "resume": (retriever.resume, {"cursor": result.cursor, "top_k": 1}),
        "next": (result.next, {"count": 1}),
        "TwoStageRetriever": (
            package.TwoStageRetriever, {"collection": collection, "model": model},
        ),
        "TwoStageRetriever.open": (package.TwoStageRetriever.open, {
            "location": nowhere, "name": "images", "model": model, "precision": "auto",
            "timeout": 30,
        }),
        "captions.search": (
            of_captions.search, {"image": image, "top_k": 1, "num_candidates": 2, "filter": None},
        ),
        "captions.add": (of_captions.add, {"texts": ["x"], "payloads": None}),
        "CaptionRetriever": (
            package.CaptionRetriever, {"collection": captions, "model": model},
        ),
        "CaptionCollection.create": (package.CaptionCollection.create, {
            "location": ":memory:", "name": "more", "contract": model.contract(),
        }),
        "CaptionCollection.add": (captions.add, {
            "texts": ["x"], "embeddings": model.encode_texts(["x"]), "payloads": None,
        }),
        "encode_texts": (model.encode_texts, {"texts": ["a"]}),
        "encode_images": (model.encode_images, {"images": [image], "batch_size": 2}),
        "preprocess": (model.preprocess, {"images": [image]}),
        "tokenize": (model.tokenize, {"texts": ["a"]}),
        "model.score": (model.score, {"text": "a", "tokens": tokens, "batch_size": 2}),
        "model.score_pairs": (
            model.score_pairs, {"texts": ["a"], "tokens": tokens, "batch_size": 2},
        ),
        "from_pretrained": (
            EDJEModel.from_pretrained,
            {"name_or_path": tiny_folder, "device": "cpu", "dtype": None},
        ),
        "save_pretrained": (
            # A copy of its own, as saving names the folder in the model.
            EDJEModel.from_pretrained(tiny_folder, device="cpu").save_pretrained,
            {"folder": folder / "model", "dtype": None},
        ),
        "Reranker": (package.Reranker, {"model": model, "batch_size": 2, "precision": "auto"}),
        "reranker.score": (package.Reranker(model).score, {"text": "a", "tokens": tokens}),
        "reranker.score_pairs": (
            package.Reranker(model).score_pairs, {"texts": ["a"], "tokens": tokens},
        ),
        "rank": (
            encoder.rank, {"query": "a", "documents": [image], "top_k": 1, "batch_size": 1},
        ),
        "predict": (encoder.predict, {"inputs": [("a", image)], "batch_size": 1}),
        "match_texts": (package.match_texts, {
            "model": model, "image": image, "texts": ["a"], "top_k": 1, "num_candidates": 1,
        }),
        "classify": (package.classify, {
            "model": model, "image": image, "labels": ["a", "b"], "template": "x {}",
        }),
        "classify_batch": (package.classify_batch, {
            "model": model, "images": [image], "labels": ["a", "b"], "template": "x {}",
        }),
        "explain_match": (
            package.explain_match, {"model": model, "text": "a", "image": image},
        ),
        "ImageCollection.create": (package.ImageCollection.create, {
            "location": ":memory:", "name": "x", "contract": model.contract(),
            "codec": "float16", "engine": None,
        }),
        "ImageCollection.open": (
            package.ImageCollection.open, {"location": nowhere, "name": "images"},
        ),
        "add": (collection.add, {
            "image_ids": [numbered_id(1)], "encoding": ImageEncoding(embeddings, tokens),
            "payloads": [{"a": 1}],
        }),
        "update_payload": (collection.update_payload, {"payloads": {known: {"a": 1}}}),
        "existing": (collection.existing, {"ids": [known]}),
        "ImageCollection.open_or_create": (package.ImageCollection.open_or_create, {
            "location": ":memory:", "name": "new", "contract": model.contract(),
            "tokens": None, "codec": "float16", "fit": None, "tokens_folder": None,
            "payload_indexes": None, "engine": None, "qdrant": None, "timeout": 30,
        }),
        "encodings": (collection.encodings, {"image_ids": [known]}),
        "payloads": (collection.payloads, {"image_ids": [known]}),
        "ids": (collection.ids, {"filter": None}),
        "create_payload_indexes": (
            collection.create_payload_indexes, {"indexes": {"page": "integer"}},
        ),
        "tokens": (collection.tokens, {"candidates": []}),
        "codes": (collection.codes, {"candidates": []}),
        "nearest": (collection.nearest, {"embeddings": embeddings, "num_candidates": 1}),
        "collection.recommend": (
            collection.recommend, {"liked": [known], "disliked": [], "num_candidates": 1},
        ),
        "count": (collection.count, {"filter": None}),
        "delete": (collection.delete, {"ids": []}),
        "delete_matching": (collection.delete_matching, {"filter": {"no": "such"}}),
        "create_payload_index": (
            collection.create_payload_index, {"field": "page", "kind": "integer"},
        ),
        "require": (collection.require, {"contract": model.contract()}),
        "draw_heat": (
            package.draw_heat, {"image": image, "explanation": explanation, "word": None},
        ),
        "draw_explanation": (
            package.draw_explanation, {"image": image, "explanation": explanation},
        ),
        "attach_tokens": (package.attach_tokens, {
            "location": client, "name": "none", "model": model, "progress": False,
        }),
        "AttachedCollection.open": (package.AttachedCollection.open, {
            "location": client, "name": "none", "model": model, "precision": "auto",
        }),
        "cut_texts": (model.cut_texts, {"texts": ["a"]}),
        "ServiceSettings": (ServiceSettings, {
            "images": None, "api_keys": (), "cors_origins": (), "max_top_k": 5, "timeout": 3.0,
            "batch_wait_ms": 2.0, "decode_seconds": 1.0,
        }),
        "ingest_images": (package.ingest_images, {
            "source": [folder / "a.png"], "collection": collection, "model": model,
            "batch_size": 1, "workers": 1, "progress": False,
        }),
        "score_pairs_file": (package.score_pairs_file, {
            "pairs": folder / "pairs.jsonl", "out": folder / "scores.jsonl", "model": model,
            "batch_size": 1, "workers": 1, "progress": False,
        }),
    }  # fmt: skip
    with retriever, of_captions:
        yield given


def test_no_call_fails_with_a_bare_error(
    calls: dict[str, Call], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a text may be the name of a folder
    bare = []
    for name, (call, right) in calls.items():
        for argument in right:
            for wrong in WRONG:
                if argument in ("folder", "out", "progress", "api_key") and isinstance(wrong, str):
                    continue  # a text is right there
                try:
                    made = call(**{**right, argument: wrong})
                    if name.endswith(("create", "open")):
                        made.close()
                except EdjeError:
                    pass
                except Exception as error:
                    bare.append(f"{name}({argument}={wrong!r}): {type(error).__name__}: {error}")
    assert not bare, "\n".join(bare)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("search", "text"),
        ("search_batch", "texts"),
        ("search_by_image", "top_k"),
        ("recommend", "liked"),
        ("recommend", "disliked"),
        ("retriever.score", "text"),
        ("retriever.score", "image_ids"),
        ("explain", "text"),
        ("resume", "cursor"),
        ("next", "count"),
        ("TwoStageRetriever", "collection"),
        ("TwoStageRetriever", "model"),
        ("captions.add", "texts"),
        ("encode_texts", "texts"),
        ("encode_images", "images"),
        ("encode_images", "batch_size"),
        ("preprocess", "images"),
        ("tokenize", "texts"),
        ("model.score", "text"),
        ("model.score", "tokens"),
        ("model.score_pairs", "texts"),
        ("model.score_pairs", "tokens"),
        ("save_pretrained", "folder"),
        ("Reranker", "model"),
        ("Reranker", "precision"),
        ("reranker.score", "text"),
        ("reranker.score", "tokens"),
        ("reranker.score_pairs", "texts"),
        ("reranker.score_pairs", "tokens"),
        ("rank", "query"),
        ("rank", "documents"),
        ("predict", "inputs"),
        ("match_texts", "texts"),
        ("classify", "labels"),
        ("classify_batch", "images"),
        ("explain_match", "text"),
        ("explain_match", "image"),
        ("ImageCollection.create", "name"),
        ("ImageCollection.create", "contract"),
        ("ImageCollection.create", "codec"),
        ("add", "image_ids"),
        ("add", "encoding"),
        ("add", "payloads"),
        ("update_payload", "payloads"),
        ("encodings", "image_ids"),
        ("tokens", "candidates"),
        ("delete_matching", "filter"),
        ("require", "contract"),
        ("draw_heat", "explanation"),
        ("draw_explanation", "explanation"),
        ("attach_tokens", "model"),
        ("AttachedCollection.open", "name"),
        ("cut_texts", "texts"),
        ("ServiceSettings", "max_top_k"),
        ("ServiceSettings", "timeout"),
        ("ingest_images", "source"),
        ("ingest_images", "collection"),
        ("ingest_images", "model"),
        ("score_pairs_file", "pairs"),
    ],
)
def test_the_error_names_the_argument(calls: dict[str, Call], name: str, argument: str) -> None:
    call, right = calls[name]
    with pytest.raises(EdjeError, match=argument):
        call(**{**right, argument: None})
