"""The page in a real browser, against a real service with the bundled model."""

from __future__ import annotations

import base64
import io
import re
from urllib.parse import quote

import httpx
import pytest
from in_browser import DROP, NEEDS_BROWSER, until
from PIL import Image
from qdrant_client import QdrantClient
from server_process import ServerProcess
from service_process import ServiceProcess, folder_of_scenes

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.demo.annotated import write_scenes
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.model import EDJEModel

pytestmark = NEEDS_BROWSER
COUNT = 104
LARGE = 2**53  # a browser's own numbers leave out every other one from here on
KEY = "a-key-of-some-length"


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "scenes"
    written = folder_of_scenes(folder, COUNT)
    with ImageCollection.open(folder / "index", "images") as collection:
        points = [point for page in collection.index.scroll() for point in page]
        points.sort(key=lambda point: point.payload["path"])
        numbers = {point.id: {"number": LARGE + n} for n, point in enumerate(points)}
        collection.update_payload(numbers)
    return written


@pytest.fixture(scope="module")
def url(captions, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "scenes"
    service = ServiceProcess("--index", folder / "index", "--images", folder / "scenes")
    service.wait()
    yield service.url
    service.end()


def ask(page, text):
    page.fill("#text", text)
    page.press("#text", "Enter")
    page.wait_for_selector(".right .hit")


def names(page, side):
    return page.eval_on_selector_all(f".{side} .hit", "hits => hits.map(hit => hit.title)")


def test_the_right_picture_comes_first_beside_the_first_stages_ranking(open_page, captions):
    page = open_page("/?view=compare")
    page.wait_for_selector(".tile img")
    ask(page, captions[2])
    assert names(page, "right")[0] == "scene-0002.png"
    assert len(names(page, "left")) == len(names(page, "right")) == 10
    assert page.locator(".links path").count() >= 10
    assert re.search(r"\d m?s, \d+ candidates scored", page.inner_text(".took"))
    loaded = "images => images.every(image => image.complete && image.naturalWidth > 0)"
    until(lambda: page.eval_on_selector_all(".right li:nth-child(-n+5) .thumb", loaded))
    assert page.locator(".thumb:not([alt])").count() == 0
    page.click("text=Show ten more")
    until(lambda: len(names(page, "right")) == 20)
    assert len({*names(page, "right")}) == 20


def test_a_picture_opens_with_its_payload_and_leads_to_more_like_it(open_page, captions):
    page = open_page("/?view=compare")
    ask(page, captions[3])
    page.click(".right li:first-child .hit")
    assert page.inner_text("#detail-title") == "scene-0003.png"
    assert "pictures/scene-0003.png" in page.inner_text("#payload")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#detail-title") == names(page, "right")[1]
    page.keyboard.press("Escape")
    assert not page.locator("#detail").is_visible()
    page.click(".right li:first-child .hit")
    page.click("#like")
    page.wait_for_selector(".asked")
    assert page.locator(".tile").count() == 40
    assert "scene-0003.png" not in page.locator(".grid").inner_html()


def test_heat_is_laid_over_the_picture_for_each_word(open_page, captions):
    page = open_page("/?view=compare")
    ask(page, captions[2])
    page.click(".right li:first-child .hit")
    word = page.locator(".word", has_text="star").first
    word.click()
    assert word.get_attribute("aria-pressed") == "true"
    assert page.locator("#heat").is_visible()
    drawn = """() => {
        const canvas = document.getElementById("heat");
        const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        const alphas = data.filter((_, place) => place % 4 === 3);
        return [Math.min(...alphas), Math.max(...alphas)];
    }"""
    coldest_and_hottest = page.evaluate(drawn)
    assert coldest_and_hottest[1] - coldest_and_hottest[0] > 60
    word.click()
    assert not page.locator("#heat").is_visible()


def test_large_numbers_are_shown_and_sent_with_all_their_digits(open_page, captions):
    page = open_page(f"/?view=compare&q={quote(captions[2])}&f=number={LARGE + 3}")
    page.wait_for_selector(".right .hit")
    assert names(page, "right") == ["scene-0003.png"]
    page.click(".right .hit")
    assert f"{LARGE + 3}" in page.inner_text("#payload")
    page.keyboard.press("Escape")
    page.click(".chip")
    until(lambda: len(names(page, "right")) > 1)
    page.fill("#filter", f"number={LARGE + 5}")
    page.press("#filter", "Enter")
    until(lambda: names(page, "right") == ["scene-0005.png"])


def test_filters_sliders_and_what_is_empty_or_wrong(open_page, captions):
    page = open_page("/?view=compare")
    ask(page, captions[2])
    page.fill("#filter", "width=1")
    page.press("#filter", "Enter")
    page.wait_for_selector(".empty")
    assert "filters" in page.inner_text(".empty")
    assert page.locator(".order").count() == 0  # "Best first, of 0 candidates"
    page.click(".chip")
    page.wait_for_selector(".right .hit")
    page.fill("#candidates", "0")
    page.dispatch_event("#candidates", "change")
    page.wait_for_selector(".took >> text=10 candidates")
    page.fill("#candidates", "100")
    page.dispatch_event("#candidates", "change")
    page.wait_for_selector(f".took >> text={COUNT} candidates")
    page.fill("#text", "---")
    page.press("#text", "Enter")
    page.wait_for_selector(".note.bad")
    assert "no word" in page.inner_text(".note.bad")


def test_a_text_that_is_cut_is_said(open_page):
    page = open_page(f"/?q={quote('a red star ' * 40)}")
    page.wait_for_selector(".note.warn")
    told = page.inner_text(".note.warn")
    assert "Not all of the text was read" in told
    assert "longer than the model reads" in told


def test_a_search_cut_short_says_so(open_page, captions):
    page = open_page("/?q=a+red+star&b=10&view=compare")
    page.wait_for_selector(".note.warn")
    assert "budget" in page.inner_text(".note.warn")
    assert "not scored" in page.inner_text(".right")


def test_it_is_used_without_a_mouse(open_page, captions):
    page = open_page("/?view=compare")
    page.wait_for_selector(".tile img")
    page.click(".collection")
    page.keyboard.press("/")
    page.keyboard.type(captions[4])
    page.keyboard.press("Enter")
    page.wait_for_selector(".right .hit")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    focused = "document.activeElement.title"
    assert page.evaluate(focused) == names(page, "right")[1]
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.closest('.left') !== null")
    page.keyboard.press("Enter")
    assert page.locator("#detail").is_visible()


def test_a_picture_is_searched_by(open_page, captions, tmp_path_factory):
    page = open_page("/?view=compare")
    page.wait_for_selector(".tile img")
    file = tmp_path_factory.getbasetemp() / "scenes" / "scenes" / "pictures" / "scene-0007.png"
    page.set_input_files("#file", str(file))
    page.wait_for_selector(".asked")
    assert page.locator(".tile .line b").first.text_content() == "scene-0007.png"
    dropped = base64.b64encode(file.with_name("scene-0008.png").read_bytes()).decode()
    page.evaluate(DROP, [dropped, None])
    page.wait_for_selector("text=Like mine.png")
    assert not page.locator("#drop").is_visible()
    assert page.locator(".tile .line b").first.text_content() == "scene-0008.png"


def test_transparent_pictures_lie_on_white_in_dark_colours(open_page):
    page = open_page("/")
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector(".tile img")
    clear = io.BytesIO()
    Image.new("RGBA", (80, 80)).save(clear, "PNG")
    file = {"name": "clear.png", "mimeType": "image/png", "buffer": clear.getvalue()}
    page.set_input_files("#file", file)
    page.wait_for_selector(".asked img")
    asked = Image.open(io.BytesIO(page.locator(".asked img").screenshot())).convert("RGB")
    assert asked.getpixel((asked.width // 2, asked.height // 2)) == (255, 255, 255)
    page.click(".tile .open >> nth=0")
    colour = "image => getComputedStyle(image).backgroundColor"
    assert page.eval_on_selector("#large", colour) == "rgb(255, 255, 255)"


def test_a_narrow_screen_shows_one_ranking_at_a_time(open_page, captions):
    page = open_page("/?view=compare", viewport={"width": 390, "height": 844}, color_scheme="dark")
    ask(page, captions[2])
    assert page.locator(".right").is_visible()
    assert not page.locator(".left").is_visible()
    page.click("role=tab[name='First stage']")
    assert page.locator(".left").is_visible()
    assert not page.locator(".right").is_visible()
    wide = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert page.evaluate(wide)


def test_an_address_brings_back_what_was_asked(open_page, captions):
    page = open_page("/?view=compare")
    ask(page, captions[5])
    first = names(page, "right")
    address = page.evaluate("location.pathname + location.search")
    again = open_page(address)
    again.wait_for_selector(".right .hit")
    assert names(again, "right") == first


def test_a_key_is_asked_for_and_pictures_that_are_not_served_leave_words(browser, tmp_path):
    folder_of_scenes(tmp_path, 20)
    service = ServiceProcess(
        "--index", tmp_path / "index", environment={"EDJE_QDRANT_SERVICE_KEY": KEY}
    )
    service.wait()
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(service.url)
        page.wait_for_selector("text=This service asks for a key")
        page.fill("#key-input", "another-key-of-length")
        page.press("#key-input", "Enter")
        page.wait_for_selector("text=That key does not fit")
        page.fill("#key-input", KEY)
        page.press("#key-input", "Enter")
        page.wait_for_selector(".note.warn")
        assert "--images" in page.inner_text(".note.warn")
        page.wait_for_selector(".tile .noimage")
        page.locator(".tile .open").first.click()
        page.wait_for_selector("#unshown")
        assert not page.locator("#large").is_visible()
        assert not page.locator("#original").is_visible()
    finally:
        context.close()
        service.end()


def test_it_says_that_the_index_is_away_and_works_again_without_loading_it_again(browser, tmp_path):
    write_scenes(tmp_path / "scenes", count=20, progress=False)
    model = EDJEModel.from_pretrained("demo")
    server = ServerProcess(tmp_path / "data")
    with ImageCollection.create(server.url, "images", model.contract()) as collection:
        ingest_images(tmp_path / "scenes" / "pictures", collection, model, progress=False)
    service = ServiceProcess("--url", server.url, "--images", tmp_path / "scenes")
    service.wait()
    context, troubles = browser.new_context(), []
    try:
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(service.url + "/?view=compare")
        page.wait_for_selector(".tile img")
        server.kill()
        for path in (None, "/", "/?q=a+red+star&view=compare"):  # and loaded again
            if path is None:
                page.fill("#text", "a red star")
                page.press("#text", "Enter")
            else:
                page.goto(service.url + path)
            page.wait_for_selector(".note.bad")
            assert "the index does not answer" in page.inner_text(".note.bad")
        server.start()
        until(lambda: httpx.get(service.url + "/readyz").status_code == 200)
        ask(page, "a red star")
        assert page.locator(".note.bad").count() == 0
        assert page.inner_text("#collection") == "20 pictures in images"
        client = QdrantClient(url=server.url, check_compatibility=False)
        client.delete_collection("images")
        client.close()
        page.fill("#text", "a blue ring")
        page.press("#text", "Enter")
        page.wait_for_selector(".note.bad")
        assert "the collection is gone" in page.inner_text(".note.bad")
        assert troubles == []
    finally:
        context.close()
        service.end()
        server.end()
