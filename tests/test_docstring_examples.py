"""Run the examples in the docstrings of the classes and functions that users call first."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    "edje_qdrant.attach.attach_tokens",
    "edje_qdrant.attach.attached_collection",
    "edje_qdrant.collection.collection",
    "edje_qdrant.image_to_text.caption_retriever",
    "edje_qdrant.ingest.ingest",
    "edje_qdrant.model.edje",
    "edje_qdrant.rerank.reranker",
    "edje_qdrant.rerank.stopwatch",
    "edje_qdrant.rerank.token_cache",
    "edje_qdrant.search.batcher",
    "edje_qdrant.search.retriever",
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    found = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.ELLIPSIS, raise_on_error=False
    )
    assert found.attempted > 0
    assert found.failed == 0
