"""Qdrant's inference objects are queries, if they name the collection's encoder."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from qdrant_client import models
from searching import make_collection, random_images

from edje_qdrant import TwoStageRetriever
from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.model import EDJEModel
from edje_qdrant.search.results import SearchResult


@pytest.fixture(scope="module")
def retriever(tiny_model: EDJEModel) -> Iterator[TwoStageRetriever]:
    with TwoStageRetriever(make_collection(":memory:", tiny_model), tiny_model) as retriever:
        yield retriever


def ids(result: SearchResult) -> list[str]:
    return [hit.image_id for hit in result]


def test_a_document_is_searched_by_its_text(retriever: TwoStageRetriever) -> None:
    document = models.Document(text="two dogs", model="tiny")
    expected = ids(retriever.search("two dogs"))
    assert ids(retriever.search(document)) == expected
    first, second = retriever.search_batch(["a boat", document])
    assert first.query == "a boat"
    assert second.query == "two dogs"
    assert ids(second) == expected
    *_, last = retriever.search_stream(document)
    assert ids(last) == expected
    assert ids(asyncio.run(retriever.asearch(document))) == expected


@pytest.mark.parametrize("form", ["path", "base64", "data URI", "Pillow"])
def test_an_image_is_searched_by_what_it_holds(
    retriever: TwoStageRetriever, tmp_path: Path, form: str
) -> None:
    picture = random_images(1)[0]
    file = io.BytesIO()
    picture.save(file, "png")
    picture.save(tmp_path / "a.png")
    text = base64.b64encode(file.getvalue()).decode()
    held: Any = {
        "path": str(tmp_path / "a.png"),
        "base64": text,
        "data URI": f"data:image/png;base64,{text}",
        "Pillow": picture,
    }[form]
    found = retriever.search_by_image(models.Image(image=held, model="tiny"))
    assert ids(found) == ids(retriever.search_by_image(picture))


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        ("https://example.org/a.png", ConfigError, "fetches no images"),
        ("data:image/png,abc", ConfigError, "must be in base64"),
        ("nowhere/a.png", ImageReadError, "nowhere"),
        (base64.b64encode(b"no image at all").decode(), ImageReadError, "in base64"),
    ],
)
def test_images_that_cannot_be_used(
    retriever: TwoStageRetriever, image: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        retriever.search_by_image(models.Image(image=image, model="tiny"))


def test_another_encoder_and_options_are_refused(retriever: TwoStageRetriever) -> None:
    with pytest.raises(ConfigError, match=r"names the model 'BAAI/bge'.*written with 'tiny'"):
        retriever.search(models.Document(text="two dogs", model="BAAI/bge"))
    with pytest.raises(ConfigError, match=r"has options.*: lang"):
        retriever.search(models.Document(text="two dogs", model="tiny", options={"lang": "en"}))
    with pytest.raises(ConfigError, match=r"models.Image names the model 'clip'"):
        retriever.search_by_image(models.Image(image=Image.new("RGB", (9, 9)), model="clip"))
    with pytest.raises(ConfigError, match="word"):
        retriever.search(models.Document(text="!", model="tiny"))
