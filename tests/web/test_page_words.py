"""The page in a real browser: words for matches, filters, texts to try, and what was reranked."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from service_process import ServiceProcess, folder_of_scenes

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.search.options import NUM_CANDIDATES
from edje_qdrant.search.retriever import TwoStageRetriever

CHROMIUM = os.environ.get("EDJE_CHROMIUM") or shutil.which("chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path or at EDJE_CHROMIUM"),
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None, reason="playwright is not installed"
    ),
]
COUNT = 79
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 400, "height": 800}, "has_touch": True, "is_mobile": True,
}  # fmt: skip
#: A folder for screenshots of every test, to look at them.
SHOTS = os.environ.get("EDJE_SHOTS")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("words")


@pytest.fixture(scope="module")
def captions(folder: Path) -> list[str]:
    """Scenes with captions, albums, years, dates and places in their payloads."""
    written = folder_of_scenes(folder, COUNT)
    with ImageCollection.open(folder / "index", "images") as collection:
        points = [point for page in collection.index.scroll() for point in page]
        points.sort(key=lambda point: point.payload["path"])
        payloads = {
            point.id: {
                "caption": written[n],
                "album": ["holidays", "home", "work"][n % 3],
                "year": 2019 + n % 5,
                "taken_at": f"2024-0{1 + n % 9}-11T10:00:00+02:00",
                "place": {"lat": 38.72, "lon": -9.14},
                "good": n % 2 == 0,
            }
            for n, point in enumerate(points)
        }
        collection.update_payload(payloads)
        collection.create_payload_indexes({"album": "keyword"})
    return written


@pytest.fixture(scope="module")
def expected(captions: list[str], folder: Path) -> list[str]:
    """The names of the first hits of a search in the library, for the third caption."""
    with TwoStageRetriever.open(folder / "index") as retriever:
        return [Path(hit.payload["path"]).name for hit in retriever.search(captions[2])]


@pytest.fixture(scope="module")
def url(expected: list[str], folder: Path) -> Iterator[str]:
    service = ServiceProcess("--index", folder / "index", "--images", folder / "scenes")
    service.wait()
    yield service.url
    service.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


Open = Callable[..., Any]


@pytest.fixture(
    params=[("desktop", "light"), ("desktop", "dark"), ("phone", "light"), ("phone", "dark")],
    ids=lambda param: "-".join(param),
)
def look(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A width and a colour scheme."""
    width, scheme = request.param
    return {**(DESKTOP if width == "desktop" else PHONE), "color_scheme": scheme}


@pytest.fixture
def open_page(browser: Any, url: str, request: pytest.FixtureRequest) -> Iterator[Open]:
    contexts: list[Any] = []
    troubles: list[str] = []

    def opened(path: str = "/", **options: Any) -> Any:
        context = browser.new_context(**{**DESKTOP, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda m: m.type == "error" and troubles.append(m.text))
        page.goto(url + path)
        return page

    yield opened
    for n, context in enumerate(contexts):
        if SHOTS:
            name = re.sub(r"\W+", "-", request.node.name)
            context.pages[0].screenshot(path=f"{SHOTS}/{name}-{n}.png")
        context.close()
    assert [trouble for trouble in troubles if "status of 400" not in trouble] == []


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def wait_for(page: Any, selector: str) -> None:
    """Wait for a result, until all candidates are ranked: this machine may be slow."""
    page.wait_for_selector(selector)
    until(lambda: page.locator(".going").count() == 0)


def fits(page: Any) -> bool:
    """Whether nothing is wider than the screen."""
    wide: bool = page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    return wide


def test_the_gallery_says_matches_in_words_and_no_figures(
    open_page: Open, look: dict[str, Any], captions: list[str]
) -> None:
    page = open_page(f"/?q={quote(captions[2])}&view=gallery", **look)
    wait_for(page, ".tile .match")
    words = page.eval_on_selector_all(".tile .match", "all => all.map(each => each.textContent)")
    assert words[0] == "good match"
    assert {*words} <= {"good match", "possible match", "weak match"}
    assert "%" not in page.inner_text("#results")
    headings = page.eval_on_selector_all("#results h2", "all => all.map(each => each.textContent)")
    whole = ["Good matches", "Possible matches", "Weak matches"]
    assert headings == [each for each in whole if each in headings]
    assert headings[0] == "Good matches"
    assert fits(page)
    page.click(".tile .open >> nth=0")
    page.wait_for_selector("#words button")
    assert page.inner_text("#scores").split() == ["Match", "good", "Place", "1"]
    assert "Payload" not in page.inner_text("#detail")
    # What can be done is seen without scrolling past all that is stored.
    actions, details = (page.locator(part).bounding_box()["y"] for part in (".actions", "#payload"))
    assert actions < details


def test_compare_has_words_and_figures(
    open_page: Open, look: dict[str, Any], captions: list[str]
) -> None:
    page = open_page(f"/?q={quote(captions[2])}&view=compare", **look)
    wait_for(page, ".right .hit")
    first = page.inner_text(".right li:first-child .hit")
    assert "good match" in first
    assert re.search(r"\d+ % · logit", first)
    page.click(".right li:first-child .hit")
    page.wait_for_selector("#scores")
    assert re.search(r"good, (> )?\d+ %", page.inner_text("#scores"))
    assert fits(page)


def test_the_first_hits_are_the_librarys(
    open_page: Open, captions: list[str], expected: list[str]
) -> None:
    page = open_page(f"/?q={quote(captions[2])}&view=compare")
    wait_for(page, ".right .hit")
    names = "hits => hits.map(hit => hit.title)"
    assert page.eval_on_selector_all(".right .hit", names) == expected
    assert page.inner_text("#candidates-value") == f"{min(COUNT, NUM_CANDIDATES)}"
    assert f"{COUNT} candidates scored" in page.inner_text(".took")


def test_a_slow_search_shows_what_was_ranked_and_goes_on(
    open_page: Open, look: dict[str, Any], captions: list[str]
) -> None:
    page = open_page("/", **look)
    page.wait_for_selector(".tile img")
    budgets: list[float | None] = []
    seen: list[str] = []

    def handle(route: Any) -> None:
        body = json.loads(route.request.post_data)
        budgets.append(body["budget_ms"])
        if body["budget_ms"] is None:
            page.wait_for_selector(".going")
            seen.append(page.inner_text(".going"))
            if SHOTS:
                name = f"going-{look['viewport']['width']}-{look['color_scheme']}"
                page.screenshot(path=f"{SHOTS}/{name}.png")
            route.continue_()
        else:  # a machine on which hardly any candidate is ranked in that time
            route.continue_(post_data=json.dumps({**body, "budget_ms": 1}))

    page.route("**/v1/search", handle)
    page.fill("#text", captions[2])
    page.press("#text", "Enter")
    until(lambda: f"of {COUNT} candidates, in" in page.inner_text("#results"))
    assert budgets == [1000, None]
    assert re.fullmatch(rf"\d+ of {COUNT} candidates ranked in .*; the others follow", seen[0])
    assert page.locator(".going").count() == 0
    assert page.locator(".note.warn").count() == 0


def test_a_budget_that_was_chosen_is_kept(open_page: Open, captions: list[str]) -> None:
    page = open_page(f"/?q={quote(captions[2])}&b=10&view=gallery")
    page.wait_for_selector(".note.warn")
    assert "the budget of " in page.inner_text(".note.warn")
    assert page.locator(".going").count() == 0


def test_the_model_says_that_it_knows_no_photographs(open_page: Open, look: dict[str, Any]) -> None:
    page = open_page("/", **look)
    page.wait_for_selector("#model-note")
    told = page.inner_text("#model-note")
    assert told.startswith("The model 'demo' knows only drawn shapes.")
    assert "photographs" in told
    assert fits(page)


def test_texts_to_try_come_from_the_payloads(
    open_page: Open, look: dict[str, Any], captions: list[str]
) -> None:
    page = open_page("/", **look)
    page.wait_for_selector(".tries button")
    texts = page.eval_on_selector_all(".tries button", "all => all.map(each => each.textContent)")
    assert 0 < len(texts) <= 5
    assert {*texts} <= {*captions}
    page.click(".tries button >> nth=0")
    wait_for(page, ".order")
    assert page.input_value("#text") == texts[0]
    until(lambda: page.locator(".tile").count() > 0)


def test_fields_and_values_are_completed(open_page: Open, look: dict[str, Any]) -> None:
    page = open_page("/", **look)
    page.wait_for_selector(".tile")
    page.click("#filter")
    page.wait_for_selector("#filter-list [role=option]")
    names = "all => all.map(each => each.firstChild.textContent)"
    fields = page.eval_on_selector_all("#filter-list [role=option]", names)
    assert {"album", "year", "taken_at", "place", "good", "caption", "path"} <= {*fields}
    assert fits(page)
    page.keyboard.type("alb")
    until(lambda: page.eval_on_selector_all("#filter-list [role=option]", names) == ["album"])
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.input_value("#filter") == "album="
    values = {"holidays", "home", "work"}
    until(lambda: {*page.eval_on_selector_all("#filter-list [role=option]", names)} == values)
    assert page.inner_text("#filter-list [role=option] >> nth=0").split() == ["holidays", "27"]
    if SHOTS:
        name = f"values-{look['viewport']['width']}-{look['color_scheme']}"
        page.screenshot(path=f"{SHOTS}/{name}.png")
    page.keyboard.type("wo")
    until(lambda: page.eval_on_selector_all("#filter-list [role=option]", names) == ["work"])
    page.click("#filter-list [role=option]")
    page.wait_for_selector(".chip")
    assert page.inner_text(".chip") == "album work"
    until(lambda: page.locator(".tile").count() == COUNT // 3)
    assert page.url.endswith("?f=album%3Dwork")


def test_ranges_dates_and_places_filter(open_page: Open) -> None:
    page = open_page("/")
    page.wait_for_selector(".tile")
    page.click("#filter")
    page.keyboard.type("taken")
    page.wait_for_selector("#filter-list [role=option]")
    page.click("#filter-list [role=option]")
    until(lambda: page.input_value("#filter") == "taken_at>=")
    page.wait_for_selector("#filter-list .hint")
    assert "2024-06-01" in page.inner_text("#filter-list .hint")
    page.keyboard.type("2024-06-01")
    page.keyboard.press("Enter")
    page.wait_for_selector(".chip")
    assert page.inner_text(".chip") == "taken_at ≥ 2024-06-01"
    months = sum(1 + n % 9 >= 6 for n in range(COUNT))
    until(lambda: page.locator(".tile").count() == months)
    page.fill("#filter", "year < 2021")
    page.press("#filter", "Enter")
    both = sum(1 + n % 9 >= 6 and n % 5 < 2 for n in range(COUNT))
    until(lambda: page.locator(".tile").count() == both)
    page.fill("#filter", "place~38.72,-9.14,1000")
    page.press("#filter", "Enter")
    until(lambda: page.locator(".chip").count() == 3)
    until(lambda: page.locator(".tile").count() == both)
    assert page.inner_text("#filter-problems") == ""
    # A search by text takes them too, and a shared address brings them back.
    page.fill("#text", "a red star")
    page.press("#text", "Enter")
    until(lambda: f"of {both} candidates, in" in page.inner_text("#results"))
    # A text of so few words says too little for words about its matches.
    assert page.locator(".tile .match, #results h2").count() == 0
    again = open_page(page.url[page.url.index("/?") :])
    until(lambda: f"of {both} candidates, in" in again.inner_text("#results"))
    assert again.locator(".chip").count() == 3
    until(lambda: again.locator(".tile").count() == both)


def test_a_filter_that_finds_nothing_says_why(open_page: Open, look: dict[str, Any]) -> None:
    page = open_page("/", **look)
    page.wait_for_selector(".tile")
    page.fill("#filter", "albun=work")
    page.press("#filter", "Enter")
    page.wait_for_selector("#filter-problems p")
    told = page.inner_text("#filter-problems")
    assert "No image has a field 'albun'; did you mean 'album'?" in told
    assert page.locator(".chip.wrong").count() == 1
    assert fits(page)
    if SHOTS:
        name = f"wrong-{look['viewport']['width']}-{look['color_scheme']}"
        page.screenshot(path=f"{SHOTS}/{name}.png")
    page.click("text=Use album=work")
    until(lambda: page.locator(".tile").count() == COUNT // 3)
    assert page.locator(".chip.wrong").count() == 0
    page.click(".chip")
    page.fill("#filter", "album=2020")
    page.press("#filter", "Enter")
    page.wait_for_selector("#filter-problems p")
    assert "'album' holds text" in page.inner_text("#filter-problems")
    page.click(".chip")
    page.fill("#filter", "year>=soon")
    page.press("#filter", "Enter")
    page.wait_for_selector("#filter-problems p")
    assert "give a number, or a date" in page.inner_text("#filter-problems")
    page.fill("#filter", "nonsense")
    page.press("#filter", "Enter")
    assert page.get_attribute("#filter", "aria-invalid") == "true"
