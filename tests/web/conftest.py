"""A service over a real collection on the embedded engine, with a small model; a browser."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra web")

from fastapi.testclient import TestClient
from in_browser import CHROMIUM, FLAGS
from PIL import Image

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.images import image_file_id
from edje_qdrant.index.qdrant import connection
from edje_qdrant.model import EDJEModel
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.types import ImageEncoding
from edje_qdrant.web import availability
from edje_qdrant.web.app import create_app
from edje_qdrant.web.settings import ServiceSettings

WriteImages = Callable[..., list[Path]]
COUNT = 12


@pytest.fixture(scope="session")
def encoded(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: EDJEModel,
    write_images: WriteImages,
) -> tuple[list[Path], list[str], ImageEncoding]:
    """Images, their ids, and what the model makes of them."""
    paths = write_images(tmp_path_factory.mktemp("web") / "pictures", COUNT)
    pictures = [Image.open(path) for path in paths]
    return paths, [image_file_id(str(path)) for path in paths], tiny_model.encode_images(pictures)


Start = Callable[..., TestClient]


@pytest.fixture(scope="session")
def start(tiny_model: EDJEModel, encoded: tuple[list[Path], list[str], ImageEncoding]) -> Start:
    """Start a service in a folder, until a stack ends; `client.ids` are its images, by page."""
    paths, ids, encoding = encoded

    def started(stack: ExitStack, folder: Path, **options: Any) -> TestClient:
        shutil.copytree(paths[0].parent, folder / "pictures")
        payloads = [
            {"path": str(folder / "pictures" / path.name), "album": ["a", "b"][n % 2], "page": n}
            for n, path in enumerate(paths)
        ]
        contract = tiny_model.contract()
        with ImageCollection.create(folder / "index", "images", contract) as collection:
            collection.add(ids, encoding, payloads)
        retriever = TwoStageRetriever.open(folder / "index", model=tiny_model)
        settings = ServiceSettings(**{"images": folder / "pictures", **options})
        client = TestClient(create_app(retriever, settings), raise_server_exceptions=False)
        stack.enter_context(client)
        client.ids = ids
        client.retriever = retriever
        client.folder = folder
        return client

    return started


@pytest.fixture
def serve(start: Start, tmp_path: Path) -> Iterator[Callable[..., TestClient]]:
    """Start a service of this test's own, with settings."""
    with ExitStack() as stack:
        yield lambda **options: start(stack, tmp_path, **options)


@pytest.fixture(scope="module")
def shared(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A service for tests that change nothing."""
    with ExitStack() as stack:
        yield start(stack, tmp_path_factory.mktemp("shared"))


@pytest.fixture
def client(serve: Callable[..., TestClient]) -> TestClient:
    return serve()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let services of this process wait long for a server, which may share a busy machine."""
    monkeypatch.setattr(availability, "_PATIENCE", 60.0)
    monkeypatch.setattr(availability, "_SILENCE", 60.0)
    monkeypatch.setattr(connection, "_PROBE_SECONDS", 60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the service's images and index are."""
    return tmp_path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, url: str) -> Iterator[Callable[..., Any]]:
    """Open a page of the module's service; errors of its scripts and its policy fail the test."""
    contexts: list[Any] = []
    troubles: list[str] = []

    def opened(
        path: str = "/", *, before: Callable[[Any], None] | None = None, **options: Any
    ) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda m: m.type == "error" and troubles.append(m.text))
        if before is not None:
            before(page)
        page.goto(url + path)
        return page

    # What the content security policy forbids is told on the console, too.
    opened.known = ["status of 400", "net::ERR_FAILED"]
    yield opened
    for context in contexts:
        context.close()
    assert [each for each in troubles if not any(words in each for words in opened.known)] == []
