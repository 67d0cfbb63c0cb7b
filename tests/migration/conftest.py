from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from migration_world import World, draw
from served import served

from edje_qdrant.migration import change_over
from edje_qdrant.model import EDJEModel

PLACES = [
    "rest-payload",
    *(
        pytest.param(place, marks=pytest.mark.slow)
        for place in ("edge-file", "edge-payload", "faiss-file", "rest-file", "grpc-payload")
    ),
    pytest.param("server-payload", marks=pytest.mark.qdrant_server),
    pytest.param("server grpc-payload", marks=pytest.mark.qdrant_server),
]


@pytest.fixture(scope="session")
def demo_model() -> EDJEModel:
    """A model with embeddings and tokens of other sizes."""
    return EDJEModel.from_pretrained("demo", device="cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("migrated")
    draw(folder, 6)
    return folder


@pytest.fixture(autouse=True)
def nothing_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process writes while a test cuts over, so there is nothing to wait for."""
    monkeypatch.setattr(change_over, "_IN_FLIGHT", 0.0)


@pytest.fixture(params=PLACES)
def world(request: pytest.FixtureRequest, tmp_path: Path, pictures: Path) -> Iterator[World]:
    yield from _worlds(request.param, tmp_path, pictures)


@pytest.fixture(params=["edge-file"])
def edge_world(request: pytest.FixtureRequest, tmp_path: Path, pictures: Path) -> Iterator[World]:
    yield from _worlds(request.param, tmp_path, pictures)


def _worlds(kind: str, tmp_path: Path, pictures: Path) -> Iterator[World]:
    kind, _, tokens = kind.partition("-")
    if kind in ("edge", "faiss"):
        more = {"tokens": tokens, "engine": kind}
        yield World(tmp_path / "index", "images", pictures, more)
        return
    more = {"tokens": tokens, **({"tokens_folder": tmp_path / "side"} if tokens == "file" else {})}
    for server in served(kind):
        yield World(server.client, server.name("images"), pictures, more, server)


@pytest.fixture
def folder_world(tmp_path: Path, pictures: Path) -> World:
    return World(tmp_path / "index", "images", pictures)


@pytest.fixture(params=["rest", pytest.param("server", marks=pytest.mark.qdrant_server)])
def server_world(request: pytest.FixtureRequest, pictures: Path) -> Iterator[World]:
    for server in served(request.param):
        yield World(server.client, server.name("images"), pictures, {}, server)
