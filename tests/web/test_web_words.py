"""The page's switch for the words of captions and names, in a real browser."""

from __future__ import annotations

import json

import pytest
from in_browser import NEEDS_BROWSER, until
from service_process import ServiceProcess

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.demo.annotated import write_scenes
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.model import EDJEModel

pytestmark = NEEDS_BROWSER
COUNT, FOUND = 60, 39
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {
    "viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True,
}  # fmt: skip
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scenes, one of which has a place."""
    folder = tmp_path_factory.mktemp("words")
    write_scenes(folder / "scenes", count=COUNT, progress=False)
    pictures = sorted((folder / "scenes" / "pictures").iterdir())
    lines = [{"path": str(path)} for path in pictures]
    lines[FOUND]["place"] = "Lisbon, Portugal"
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    model = EDJEModel.from_pretrained("demo")
    for name, fields in (("index", ["place", "path"]), ("plain", None)):
        with ImageCollection.create(
            folder / name, "images", model.contract(), text_fields=fields
        ) as collection:
            ingest_images(folder / "list.jsonl", collection, model, progress=False)
    return folder


@pytest.fixture(scope="module")
def url(folder):
    service = ServiceProcess("--index", folder / "index", "--images", folder / "scenes")
    service.wait()
    yield service.url
    service.end()


def first(page):
    page.wait_for_selector("#results .tile:not(.ghost)")
    return page.locator("#results .tile").first.locator(".open").get_attribute("aria-label")


@pytest.mark.parametrize("look", [DESKTOP, {**PHONE, "color_scheme": "dark"}])
def test_words_are_searched_where_the_switch_is_on(open_page, look):
    page = open_page("/?q=a+picture+of+lisbon", **look)
    name = f"scene-{FOUND:04d}"
    assert name not in first(page)
    switch = page.locator("#by-words")
    assert "place, path" in switch.get_attribute("title")
    switch.click()
    until(lambda: "words=1" in page.url and name in first(page))
    assert switch.get_attribute("aria-pressed") == "true"
    assert page.evaluate(FITS)
    page.reload()
    until(lambda: name in first(page))
    page.go_back()
    until(lambda: "words=1" not in page.url and name not in first(page))
    assert switch.get_attribute("aria-pressed") == "false"


def test_it_is_remembered_for_other_texts(open_page):
    page = open_page("/")
    page.locator("#by-words").click()
    page.fill("#text", "lisbon")
    page.press("#text", "Enter")
    until(lambda: "words=1" in page.url and f"scene-{FOUND:04d}" in first(page))
    page.click("[data-view=compare]")
    page.wait_for_selector(".right .hit")
    assert f"scene-{FOUND:04d}" in page.locator(".right .hit").first.get_attribute("title")


def test_a_collection_without_words_has_no_switch(browser, folder):
    service = ServiceProcess("--index", folder / "plain", "--images", folder / "scenes")
    service.wait()
    context = browser.new_context(**DESKTOP)
    try:
        page = context.new_page()
        page.goto(service.url + "/?q=lisbon&words=1")
        page.wait_for_selector("#results .tile:not(.ghost)")
        assert page.locator("#by-words").is_hidden()
    finally:
        context.close()
        service.end()
