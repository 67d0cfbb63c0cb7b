from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edje_qdrant.errors import ConfigError, MissingExtraError, StoreError
from edje_qdrant.ingest.file_fields import FileFields
from edje_qdrant.ingest.watch import FolderWatch
from edje_qdrant.web import watching
from edje_qdrant.web.app import create_app
from edje_qdrant.web.settings import ServiceSettings

pytest.importorskip("watchfiles", reason="needs the extra watch")


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Any]) -> Any:
    monkeypatch.setattr(watching, "FolderWatch", partial(FolderWatch, settle=0.1))
    monkeypatch.setattr(watching, "_AGAIN", 0.1)
    return serve(watch=True, ingest=True)


def test_a_service_keeps_its_collection_the_same_as_a_folder(watched: Any) -> None:
    def count() -> int:
        return int(watched.get("/v1/collection").json()["pictures"])

    folder = watched.folder / "pictures"
    assert count() == 12
    Image.new("RGB", (40, 30), "red").save(folder / "red.png")
    until(lambda: count() == 13)
    hits = watched.post("/v1/search", json={"text": "red", "top_k": 13}).json()["hits"]
    assert "red.png" in [Path(hit["payload"]["path"]).name for hit in hits]
    files = {"files": ("blue.png", (folder / "red.png").read_bytes())}
    assert watched.post("/v1/ingest", files=files).json()["skipped"] == 1
    (folder / "red.png").unlink()
    until(lambda: count() == 12)
    with BytesIO() as file:
        Image.new("RGB", (40, 30), "blue").save(file, "PNG")
        files = {"files": ("blue.png", file.getvalue())}
    assert watched.post("/v1/ingest", files=files).json()["added"] == 1
    (uploaded,) = (folder / "uploads").glob("*.png")
    Image.new("RGB", (40, 30), "green").save(folder / "uploads" / "left-alone.png")
    Image.new("RGB", (40, 30), "grey").save(folder / "grey.png")
    uploaded.unlink()
    until(lambda: count() == 14)  # grey.png and the upload


def test_a_service_follows_documents_and_stores_no_exif_data(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Any]
) -> None:
    pytest.importorskip("pypdfium2")
    monkeypatch.setattr(watching, "FolderWatch", partial(FolderWatch, settle=0.1))
    client = serve(watch=True, pdf_pages=True, file_fields=FileFields(exif=False))
    document = client.folder / "pictures" / "red.pdf"
    Image.new("RGB", (40, 30), "red").save(document)

    def payloads() -> list[dict[str, Any]]:
        found = client.retriever.collection.index.scroll(filter={"document": str(document)})
        return [point.payload for page in found for point in page]

    until(lambda: bool(payloads()))
    (payload,) = payloads()
    assert payload["page"] == 1
    assert "file_size" not in payload
    document.unlink()
    until(lambda: not payloads())


@pytest.mark.slow
def test_after_an_error_it_watches_again(
    watched: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edje_qdrant.web")
    collection = watched.retriever.collection

    def broken(*_: Any, **__: Any) -> None:
        raise StoreError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(collection, "add_new", broken)
        Image.new("RGB", (40, 30), "red").save(watched.folder / "pictures" / "red.png")
        until(lambda: "no space" in caplog.text)
    until(lambda: len(collection) == 13)
    until(lambda: "watched folder: 1 added" in caplog.text)


def test_settings_that_cannot_be_watched_are_refused(
    tmp_path: Path, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve()
    with pytest.raises(ConfigError, match="give --images FOLDER too"):
        ServiceSettings(watch=True)
    with pytest.raises(ConfigError, match="give --watch too"):
        ServiceSettings(pdf_pages=True, images=tmp_path)
    with pytest.raises(ConfigError, match="often"):
        ServiceSettings(watch=True, frames_every="often", images=tmp_path)
    settings = ServiceSettings(watch=True, images=tmp_path)
    with pytest.raises(ConfigError, match="--watch or --follow-alias"):
        create_app(client.retriever, settings, follow=lambda before: before)
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    with pytest.raises(MissingExtraError, match=r"edje-qdrant\[watch\]"):
        ServiceSettings(watch=True, images=tmp_path)
