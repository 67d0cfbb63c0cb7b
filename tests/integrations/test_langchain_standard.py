"""LangChain's standard tests of retrievers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("langchain_tests", reason="needs langchain-tests")

from gallery_checks import TEXT, Gallery
from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import RetrieversIntegrationTests

from edje_qdrant.integrations.langchain import EDJERetriever


@pytest.mark.anyio  # runs the asynchronous test; pytest-asyncio is not used
class TestEDJERetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _images(self, gallery: Gallery) -> Iterator[None]:
        with gallery.open() as self._retriever:
            yield

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return EDJERetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"retriever": self._retriever}

    @property
    def retriever_query_example(self) -> str:
        return TEXT
