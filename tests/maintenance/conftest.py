from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from collection_places import KINDS, encoding_of, ids_of, make_place
from qdrant_client import QdrantClient

from edje_qdrant.tokens.codecs import Codec, codec_for


@pytest.fixture(params=KINDS)
def place(request, tmp_path):
    yield from closed_after(make_place(request.param, tmp_path))


@pytest.fixture(params=[kind for kind in KINDS if kind.endswith("file")])
def file_place(request, tmp_path):
    yield from closed_after(make_place(request.param, tmp_path))


@pytest.fixture
def shared_file(tmp_path):
    """Side files of a collection in memory, which several may open at once."""
    yield from closed_after(make_place("memory-file", tmp_path))


@pytest.fixture
def shared_payload(tmp_path):
    yield from closed_after(make_place("memory-payload", tmp_path))


def closed_after(place):
    yield place
    if isinstance(place.location, QdrantClient):
        place.location.close()


@pytest.fixture(scope="session")
def fitted() -> Callable[..., Codec]:
    """Return a codec fitted to images like those of `collection_places`."""

    @cache
    def fit(name: str, seed: int = 0) -> Codec:
        return codec_for(name, 4, 6).fit(encoding_of(ids_of(90)).tokens, seed=seed)

    return fit


@pytest.fixture
def small_pages(monkeypatch):
    """Let maintenance look at eight images at a time."""
    monkeypatch.setattr("edje_qdrant.maintenance.scan.PAGE", 8)
