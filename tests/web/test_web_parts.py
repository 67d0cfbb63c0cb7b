"""Frames of films and pages of documents in the service, and in a real browser."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import time
import zipfile
from pathlib import Path

import pytest
from document_files import Page, write_document
from fastapi.testclient import TestClient
from film_files import number_of, write_film
from PIL import Image
from service_process import ServiceProcess

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.model import EDJEModel
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.web.app import create_app
from edje_qdrant.web.settings import ServiceSettings

pytest.importorskip("av")
pytest.importorskip("pypdfium2")

CHROMIUM = os.environ.get("EDJE_CHROMIUM") or shutil.which("chromium")
COMMON = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def write_library(folder: Path, model: EDJEModel) -> None:
    """Ingest a film of 20 s, one in a container that browsers do not play, and a document."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    options = {"crf": "10", "b": "0", "deadline": "realtime", "cpu-used": "8"}
    write_film(pictures / "a film.webm", 500, codec="libvpx", options=options)
    write_film(pictures / "b.avi", 25, codec="mpeg4")
    colours = (b"0 0 1 rg", b"0 1 0 rg", b"1 0 0 rg")
    pages = [Page(colour + b" 0 0 600 900 re f", (600, 900)) for colour in colours]
    write_document(pictures / "c.pdf", pages)
    with ImageCollection.create(folder / "index", "images", model.contract()) as collection:
        report = ingest_images(
            pictures, collection, model, frames_every="4s", pdf_pages=True, progress=False
        )
    assert report.added == 5 + 1 + 3


@pytest.fixture(scope="module")
def client(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("parts")
    write_library(folder, tiny_model)
    retriever = TwoStageRetriever.open(folder / "index", model=tiny_model)
    settings = ServiceSettings(images=folder / "pictures")
    with TestClient(create_app(retriever, settings), raise_server_exceptions=False) as client:
        client.folder = folder
        index = retriever.collection.index
        points = [point for page in index.scroll() for point in page]
        client.known = {Path(str(point.payload["path"])).name: point.id for point in points}
        client.retriever = retriever
        yield client


def told(client, name):
    return client.get(f"/v1/images/{client.known[name]}").json()


def test_frames_and_pages_are_told_of_and_shown(client):
    frame = told(client, "a film.webm#t=8")
    place = f"/v1/images/{client.known['a film.webm#t=8']}"
    assert frame["payload"]["path"] == "a film.webm#t=8"
    assert frame["payload"]["video"] == "a film.webm"  # no folder of the machine
    assert (frame["payload"]["time"], frame["source"]) == (8.0, f"{place}/source#t=8")
    still = client.get(frame["file"])
    assert still.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(still.content)) as image:
        assert image.size == (64, 48)
        assert number_of(image) == pytest.approx(200 % 50, abs=0.5)
    assert client.get(frame["thumbnail"]).headers["content-type"] == "image/webp"
    page = told(client, "c.pdf#page=2")
    assert (page["payload"]["document"], page["payload"]["page"]) == ("c.pdf", 2)
    assert page["source"].endswith("/source#page=2")
    assert client.get(page["file"]).content.startswith(b"\x89PNG")


def test_frames_are_found_and_explained(client):
    answer = client.post("/v1/search", json={"text": "a", "group_by": "video", "top_k": 2})
    hits = answer.json()["hits"]
    assert {hit["group"] for hit in hits} <= {"a film.webm", "b.avi", None}
    assert not any(hit["payload"]["path"].startswith("/") for hit in hits)
    frame = client.known["a film.webm#t=8"]
    answer = client.post("/v1/explain", json={"image_id": frame, "text": "a red square"})
    assert (answer.status_code, answer.json()["image_id"]) == (200, frame)


def test_films_and_documents_are_sent_in_ranges(client):
    address = told(client, "a film.webm#t=8")["source"]
    content = (client.folder / "pictures" / "a film.webm").read_bytes()
    whole = client.get(address)
    assert (whole.status_code, whole.content) == (200, content)
    assert whole.headers["content-type"] == "video/webm"
    assert whole.headers["accept-ranges"] == "bytes"
    assert whole.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in whole.headers["content-security-policy"]
    assert whole.headers["content-disposition"].startswith("inline")
    part = client.get(address, headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, content[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(content)}"
    beyond = client.get(address, headers={"Range": f"bytes={len(content) + 1}-"})
    assert beyond.status_code == 416
    document = client.get(told(client, "c.pdf#page=2")["source"])
    assert document.headers["content-type"] == "application/pdf"
    assert "script" not in document.headers["content-security-policy"]
    saved = client.get(told(client, "b.avi#t=0")["source"])
    assert saved.headers["content-type"] == "application/octet-stream"
    assert saved.headers["content-disposition"].startswith("attachment")


def test_nothing_outside_the_folder_is_sent(client):
    image_id = client.known["b.avi#t=0"]
    collection = client.retriever.collection
    before = dict(collection.index.retrieve([image_id], tokens=False)[image_id])
    outside = client.folder / "secret.mp4"
    outside.write_bytes(b"secret")
    link = client.folder / "pictures" / "link.mp4"
    link.symlink_to(outside)
    try:
        for path in (outside, "../secret.mp4", "../../../etc/passwd", link, "gone.mp4"):
            collection.update_payload({image_id: {"path": f"{path}#t=0"}})
            for kind in ("source", "file", "thumbnail"):
                assert client.get(f"/v1/images/{image_id}/{kind}").status_code == 404
        # Images have no source, even such that are named so.
        named = client.folder / "pictures" / "odd.png#t=1"
        Image.new("RGB", (8, 8)).save(named, "PNG")
        collection.update_payload({image_id: {"path": str(named)}})
        assert client.get(f"/v1/images/{image_id}/source").status_code == 404
        assert client.get(f"/v1/images/{image_id}/file").status_code == 200
    finally:
        collection.update_payload({image_id: {"path": before["path"]}})


def test_zip_files_hold_frames_and_pages(client):
    ids = [client.known["a film.webm#t=8"], client.known["c.pdf#page=3"]]
    answer = client.post("/v1/images/zip", json={"image_ids": ids})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["a film.webm#t=8.png", "c.pdf#page=3.png"]
        with Image.open(io.BytesIO(archive.read("c.pdf#page=3.png"))) as image:
            assert image.size == (1067, 1600)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    write_library(folder, EDJEModel.from_pretrained("demo", device="cpu"))
    service = ServiceProcess("--index", folder / "index", "--images", folder / "pictures")
    service.wait()
    yield service.url
    service.end()


@pytest.fixture(scope="module")
def page():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=COMMON)
        yield browser.new_page()
        browser.close()


def in_browser(test):
    """Mark a test that needs Chromium."""
    for mark in (
        pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path or at EDJE_CHROMIUM"),
        pytest.mark.skipif(
            importlib.util.find_spec("playwright") is None, reason="playwright is not installed"
        ),
        pytest.mark.browser,
    ):
        test = mark(test)
    return test


def until(holds):
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def opened(page, url, name):
    """Open an image's details, and return the link to its film or document."""
    page.goto(f"{url}/")
    page.wait_for_selector(".tile")
    page.click(f'.tile .open[aria-label*="{name}"]')
    link = page.locator("#original")
    until(lambda: name.split(" · ")[0] in page.inner_text("#detail-title"))
    return link


@in_browser
def test_a_film_opens_at_the_time_of_its_frame(page, url):
    link = opened(page, url, "a film.webm · 0:12")
    assert link.inner_text() == "Open the film at 0:12"
    with page.context.expect_page() as caught:
        link.click()
    film = caught.value
    try:
        video = film.locator("video")
        until(lambda: video.count() == 1 and video.evaluate("v => v.readyState") >= 2)
        assert video.evaluate("v => v.error") is None
        assert 12 <= video.evaluate("v => v.currentTime") < 16
    finally:
        film.close()


@in_browser
def test_a_document_opens_at_its_page(page, url):
    from playwright.sync_api import Error as PlaywrightError

    link = opened(page, url, "c.pdf · page 3")
    assert link.inner_text() == "Open the document at page 3"
    with page.context.expect_page() as caught:
        link.click()
    document = caught.value
    try:

        def middle():
            try:
                shot = document.screenshot()
            except PlaywrightError:  # Chromium's viewer has not drawn anything yet
                return None
            with Image.open(io.BytesIO(shot)) as image:
                return image.convert("RGB").getpixel((image.width * 5 // 8, image.height // 2))

        until(lambda: middle() == (255, 0, 0))  # the third page; the first one is blue
    finally:
        document.close()
