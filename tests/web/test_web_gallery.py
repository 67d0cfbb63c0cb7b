"""The page's gallery, its views and its history, in a real browser."""

from __future__ import annotations

import base64
import json
import zipfile
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from in_browser import DROP, NEEDS_BROWSER, until
from PIL import Image
from service_process import ServiceProcess

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.demo.annotated import write_scenes
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.model import EDJEModel

pytestmark = NEEDS_BROWSER
COUNT = 90
COPIES = 3  # of the first scene
PAGE = 40
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {
    "viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True,
}  # fmt: skip
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
ID = "document.activeElement.closest('.tile').dataset.id"


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A folder of scenes and copies of one, ingested; captions by number."""
    folder = tmp_path_factory.mktemp("gallery")
    lines = write_scenes(folder / "scenes", count=COUNT, progress=False).read_text().splitlines()
    pictures = folder / "scenes" / "pictures"
    with Image.open(pictures / "scene-0000.png") as first:
        for n in range(COPIES):
            first.convert("RGB").save(
                pictures / f"copy-{n}.png", optimize=bool(n), dpi=(72, 72 + n)
            )
    model = EDJEModel.from_pretrained("demo")
    with ImageCollection.create(folder / "index", "images", model.contract()) as collection:
        for field in ("taken_at", "modified_at"):
            collection.create_payload_index(field, "datetime")
        ingest_images(pictures, collection, model, progress=False)
        points = [point for page in collection.index.scroll() for point in page]
        points.sort(key=lambda point: point.payload["path"])
        dated = {}
        for n, point in enumerate(points):
            number = n - COPIES  # copies come first
            if number >= 0:
                dated[point.id] = {"taken_at": f"2024-{12 - number // 10:02}-{28 - number % 10:02}"}
                dated[point.id]["number"] = number
        dated[points[COPIES].id]["place"] = {"lat": 38.72, "lon": -9.14}
        collection.update_payload(dated)
    captions = [json.loads(line)["caption"] for line in lines]
    return folder, captions, [point.id for point in points[COPIES:]]


@pytest.fixture(scope="module")
def captions(collected):
    return collected[1]


@pytest.fixture(scope="module")
def ids(collected):
    return collected[2]


@pytest.fixture(scope="module")
def url(collected):
    folder = collected[0]
    service = ServiceProcess(
        "--index", folder / "index", "--images", folder / "scenes", "--ingest"
    )  # fmt: skip
    service.wait()
    yield service.url
    service.end()


def shown(page):
    page.wait_for_selector(".tile[data-id]")
    # On a slow machine the rest of the candidates is ranked after the first second.
    until(lambda: page.locator(".going").count() == 0)
    return page.eval_on_selector_all(
        ".tile[data-id]", "tiles => tiles.map(tile => tile.dataset.id)"
    )


def asked(page):
    """Return what the address names."""
    return parse_qs(urlsplit(page.url).query)


def to_end(page):
    """Scroll down; return what stands there."""
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    return page.inner_text("#end")


def search(page, text):
    page.fill("#text", text)
    page.press("#text", "Enter")
    until(lambda: asked(page).get("q") == [text])
    page.wait_for_selector(".order >> text=Best first")


def gallery_of(caption):
    return f"/?q={quote(caption)}&view=gallery"


def check_with_axe(page):
    """Check names, roles and contrast by the rules of axe-core."""
    sync = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = sync.Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]})
    told = [
        (violation["id"], [node["html"][:120] for node in violation["nodes"][:3]])
        for violation in found.response["violations"]
    ]
    assert told == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_view_fits_and_can_be_read_aloud(open_page, captions, screen, scheme):
    # bypass_csp: the checker is a script of its own.
    page = open_page("/", **screen, color_scheme=scheme, bypass_csp=True)
    shown(page)
    boxes = page.eval_on_selector_all(
        ".tile", "tiles => tiles.map(tile => tile.getBoundingClientRect().toJSON())"
    )
    rows = {}
    for box in boxes:
        rows.setdefault(round(box["top"]), []).append(box)
    widths = {round(row[-1]["right"] - row[0]["left"]) for row in rows.values()}
    assert len({round(box["height"]) for box in boxes[:3]}) == 1
    assert max(widths) >= screen["viewport"]["width"] - 80
    steps = (
        lambda: None,
        lambda: (page.click("#choose"), page.click(".tile .open >> nth=1")),
        lambda: (page.click("#picked-clear"), search(page, captions[2])),
        lambda: (page.click("role=button[name='Compare']"), page.wait_for_selector(".right .hit")),
        lambda: (page.locator(".right .hit").first.click(), page.wait_for_selector(".word")),
    )
    for step in steps:
        step()
        page.wait_for_timeout(400)  # what is shown fades in
        assert page.evaluate(FITS)
        check_with_axe(page)


def test_the_start_shows_everything_newest_first_by_months(open_page, ids):
    page = open_page()
    # The copies have no date of their own, and were written just now.
    assert shown(page)[COPIES:] == ids[: len(shown(page)) - COPIES]
    assert page.inner_text(".month >> nth=1") == "December 2024"
    heights = page.eval_on_selector_all(".tile", "tiles => tiles.map(tile => tile.offsetHeight)")
    page.keyboard.press("Escape")
    until(lambda: to_end(page).endswith("pictures"))
    assert shown(page)[COPIES:] == ids
    assert len({*shown(page)}) == COUNT + COPIES
    assert page.inner_text("#end") == f"{COUNT + COPIES} pictures"
    # Tiles have their size before their images come, and keep it.
    again = page.eval_on_selector_all(".tile", "tiles => tiles.map(tile => tile.offsetHeight)")
    assert again[:10] == heights[:10]


@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_months_with_few_pictures_share_a_row(open_page, ids, screen):
    page = open_page(f"/?f={quote('number>=9')}&f={quote('number<=20')}", **screen)
    assert shown(page) == ids[9:21]
    assert page.locator(".month").all_inner_texts() == [
        "December 2024", "November 2024", "October 2024",
    ]  # fmt: skip
    boxes = page.eval_on_selector_all(
        ".tile", "tiles => tiles.map(tile => tile.getBoundingClientRect().toJSON())"
    )
    assert len({round(box["top"]) for box in boxes[1:11]}) > 1  # ten need several rows
    assert page.evaluate(FITS)
    page = open_page(f"/?f={quote('number>=9')}&f={quote('number<=10')}", **screen)
    assert shown(page) == ids[9:11]
    for name in (".month", ".tile"):
        first, second = page.eval_on_selector_all(
            name, "all => all.map(each => each.getBoundingClientRect().toJSON())"
        )
        assert round(first["top"]) == round(second["top"])
        assert first["right"] < second["left"]
        assert round(first["height"]) == round(second["height"])


def test_good_matches_share_a_row_with_few_others(open_page, captions, ids):
    page = open_page(f"/?q={quote(captions[2])}&f={quote('number>=2')}&f={quote('number<=4')}")
    assert [*shown(page)][:1] == ids[2:3]
    good, others = page.eval_on_selector_all(
        "#results h2", "all => all.map(each => each.getBoundingClientRect().toJSON())"
    )
    assert good["top"] == others["top"]
    assert good["right"] < others["left"]


def test_a_search_shows_its_best_pictures_and_why(open_page, captions, ids):
    page = open_page()
    search(page, captions[2])
    assert shown(page)[0] == ids[2]
    assert len(shown(page)) >= PAGE
    first = page.locator(".tile").first
    first.hover()
    until(lambda: first.locator(".told").evaluate("told => getComputedStyle(told).opacity") == "1")
    assert "scene-0002.png" in first.inner_text()
    assert "2024" in first.inner_text()
    first.locator(".why").click()
    first.locator(".heat").wait_for()
    assert first.locator(".reasons").inner_text()
    first.locator(".why").click()
    assert first.locator(".heat").count() == 0
    until(lambda: to_end(page).endswith("pictures"))
    assert len({*shown(page)}) == len(shown(page)) > PAGE


def test_near_duplicates_are_one_stack(open_page, captions, ids):
    page = open_page(gallery_of(captions[0]))
    before = len(shown(page))
    stack = page.locator(".stack").first
    assert stack.inner_text() == f"{COPIES + 1}"
    stack.click()
    until(lambda: len(shown(page)) == before + COPIES)
    assert page.locator(".tile.copy").count() == COPIES
    stack.click()
    until(lambda: len(shown(page)) == before)


def test_dates_and_places_are_shown(open_page, ids):
    page = open_page(f"/?open={ids[0]}")
    page.wait_for_selector("#whence time")
    assert "2024" in page.inner_text("#whence")
    assert "38.7200, \u22129.1400" in page.inner_text("#whence")
    assert "openstreetmap.org/?mlat=38.7200" in page.get_attribute("#whence a", "href")


def test_back_goes_through_every_state(open_page, captions, ids):
    page = open_page()
    shown(page)
    search(page, captions[2])
    hits = shown(page)
    page.mouse.wheel(0, 700)
    until(lambda: page.evaluate("scrollY") > 300)
    page.locator(".tile .open").nth(22).click()
    page.wait_for_selector("#detail[open]")
    down = page.evaluate("scrollY")
    assert down > 100
    assert asked(page)["open"] == [hits[22]]
    assert asked(page)["q"] == [captions[2]]
    page.keyboard.press("ArrowRight")
    until(lambda: asked(page)["open"] == [hits[23]])
    page.click("#like")
    page.wait_for_selector(".asked")
    assert asked(page) == {"like": [hits[23]]}
    assert page.input_value("#text") == ""
    assert not page.locator("#detail").is_visible()
    page.go_back()  # the image that was open
    page.wait_for_selector("#detail[open]")
    assert page.input_value("#text") == captions[2]
    page.go_back()  # closes it
    page.wait_for_selector("#detail", state="hidden")
    assert shown(page)[: len(hits)] == hits
    until(lambda: abs(page.evaluate("scrollY") - down) < 200)
    page.go_back()
    until(lambda: asked(page) == {})
    until(lambda: ids[0] in shown(page))
    page.go_forward()
    until(lambda: shown(page)[0] == hits[0])


def test_escape_and_the_cross_close_an_image_as_back_does(open_page, ids):
    page = open_page()
    shown(page)
    length = page.evaluate("history.length")
    for close in (lambda: page.keyboard.press("Escape"), lambda: page.click("#close")):
        page.locator(".tile .open").first.click()
        page.wait_for_selector("#detail[open]")
        close()
        page.wait_for_selector("#detail", state="hidden")
        until(lambda: asked(page) == {})
    assert page.evaluate("history.length") == length + 1
    other = open_page(f"/?open={ids[5]}")  # an image that was sent to somebody
    other.wait_for_selector("#detail[open]")
    assert other.inner_text("#detail-title") == "scene-0005.png"
    other.keyboard.press("Escape")
    other.wait_for_selector("#detail", state="hidden")
    until(lambda: urlsplit(other.url).query == "")


def test_an_address_shows_the_same_to_others(open_page, captions):
    page = open_page(gallery_of(captions[4]))
    shown(page)
    page.fill("#filter", "number=4")
    page.press("#filter", "Enter")
    until(lambda: len(shown(page)) == 1)
    page.click("role=button[name='Compare']")
    page.wait_for_selector(".right .hit")
    page.fill("#candidates", "100")
    page.dispatch_event("#candidates", "change")
    until(lambda: "c" in asked(page))
    page.locator(".right .hit").first.click()
    page.wait_for_selector("#detail[open]")
    expected = {"q", "f", "view", "c", "open"}
    assert {*asked(page)} == expected
    other = open_page(page.url.replace(page.evaluate("location.origin"), ""))
    for each in (other, page):
        each.reload()
        each.wait_for_selector("#detail[open]")
        assert {*asked(each)} == expected
        assert each.inner_text("#detail-title") == "scene-0004.png"
        assert each.locator(".right .hit").count() == 1
        assert each.locator(".chip").inner_text().split() == ["number", "4"]
        assert each.input_value("#text") == captions[4]


def test_the_view_is_remembered(open_page, captions):
    page = open_page()
    search(page, captions[2])
    assert asked(page)["view"] == ["gallery"]
    page.click("role=button[name='Compare']")
    page.wait_for_selector(".right .hit")
    assert page.get_attribute("[data-view=compare]", "aria-pressed") == "true"
    page.go_back()
    until(lambda: page.locator(".tile").count() > 0)
    page.goto(page.url.split("?")[0])
    page.fill("#text", captions[3])
    page.press("#text", "Enter")
    page.wait_for_selector(".right .hit")


def test_a_picture_that_was_sent_is_kept_for_reload_and_back(open_page, collected):
    folder = collected[0] / "scenes" / "pictures"
    page = open_page()
    shown(page)
    page.set_input_files("#file", str(folder / "scene-0007.png"))
    page.wait_for_selector("text=Like scene-0007.png")
    first = shown(page)[0]
    page.reload()
    page.wait_for_selector("text=Like scene-0007.png")
    assert shown(page)[0] == first
    dropped = base64.b64encode((folder / "scene-0008.png").read_bytes()).decode()
    page.evaluate(DROP, [dropped, "[data-drop=search]"])
    page.wait_for_selector("text=Like mine.png")
    page.go_back()
    page.wait_for_selector("text=Like scene-0007.png")
    other = open_page(page.url.replace(page.evaluate("location.origin"), ""))
    other.wait_for_selector(".note.bad")
    assert "only in the browser that sent it" in other.inner_text(".note.bad")


def test_the_grid_is_used_without_a_mouse(open_page, captions):
    page = open_page(gallery_of(captions[2]))
    hits = shown(page)
    page.click(".collection")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.press("ArrowDown")
    assert page.evaluate(ID) == hits[0]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(ID) == hits[2]
    page.keyboard.press("ArrowDown")
    below = page.evaluate(ID)
    assert hits.index(below) > 2
    page.keyboard.press("ArrowUp")
    assert page.evaluate(ID) == hits[2]
    page.keyboard.press("Enter")
    page.wait_for_selector("#detail[open]")
    page.keyboard.press("ArrowRight")
    until(lambda: asked(page)["open"] == [hits[3]])
    page.keyboard.press("Escape")
    page.wait_for_selector("#detail", state="hidden")
    until(lambda: page.evaluate(ID) == hits[3])  # the last image that was open
    page.keyboard.press("x")
    assert page.inner_text("#picked-count") == "1 selected"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "pick"
    page.keyboard.press("Escape")
    assert not page.locator("#picked").is_visible()


def test_selected_pictures_are_saved(open_page, captions):
    page = open_page(gallery_of(captions[2]))
    hits = shown(page)
    for place in (0, 2):
        page.locator(".tile").nth(place).hover()
        page.locator(".tile .pick").nth(place).click(modifiers=["Shift"] if place else [])
    assert page.inner_text("#picked-count") == "3 selected"
    with page.expect_download() as paths:
        page.click("#picked-paths")
    lines = paths.value.path().read_text().splitlines()
    assert lines[0] == "pictures/scene-0002.png"
    assert len(lines) == 3
    with page.expect_download() as saved:
        page.click("#picked-zip")
    assert saved.value.suggested_filename == "pictures.zip"
    with zipfile.ZipFile(saved.value.path()) as archive:
        assert archive.namelist() == lines
        assert archive.testzip() is None
    page.click("#picked-like")
    page.wait_for_selector("text=More like 3 pictures")
    assert asked(page)["like"] == hits[:3]
    assert not page.locator("#picked").is_visible()


def test_what_is_empty_or_wrong(open_page):
    open_page.known.append("status of 404")
    page = open_page("/?f=number=100000")
    page.wait_for_selector(".empty")
    assert "passes these filters" in page.inner_text(".empty")
    page.click("text=Remove the filters")
    assert len(shown(page)) >= PAGE
    page = open_page("/?f=number=3")
    assert len(shown(page)) == 1
    assert page.inner_text("#end") == ""
    page = open_page("/?open=5b0f6d0e-6d0b-5b52-9f0c-2f8f4d6c1a77&f=number=404")
    page.wait_for_selector(".note.bad")
    assert "no such image" in page.inner_text(".note.bad")


def test_a_page_of_pictures_that_does_not_come_is_asked_for_again(open_page, captions):
    failed = []

    def answer(route):
        if "cursor" in route.request.url and not failed:
            failed.append(route.abort())
        else:
            route.continue_()

    page = open_page("/", before=lambda page: page.route("**/v1/images?*", answer))
    shown(page)
    to_end(page)
    page.wait_for_selector("text=did not come")
    page.click("text=Try again")
    until(lambda: len(shown(page)) > PAGE)


def test_what_comes_slowly_has_its_place(open_page, captions):
    held = []
    page = open_page(
        "/", before=lambda page: page.route("**/v1/images?*", lambda route: held.append(route))
    )
    page.wait_for_selector(".tile.ghost")
    assert page.get_attribute("#results", "aria-busy") == "true"
    assert held
    held[0].continue_()
    page.wait_for_selector(".tile[data-id]")
    assert len(shown(page)) >= PAGE
    assert page.locator(".ghost").count() == 0
    assert page.get_attribute("#results", "aria-busy") is None


def test_ten_thousand_pictures(open_page):
    def answer(route):
        start = int((parse_qs(urlsplit(route.request.url).query).get("cursor") or ["0"])[0])
        pictures = [
            {
                "image_id": f"5b0f6d0e-6d0b-5b52-9f0c-{n:012}",
                "payload": {"path": f"{n}.png", "width": 300 + 100 * (n % 4), "height": 300},
                "file": None,
                "thumbnail": None,
            }
            for n in range(start, min(start + 200, 10_000))
        ]
        following = f"{start + 200}" if start + 200 < 10_000 else None
        body = {"pictures": pictures, "order": "id", "reason": None, "cursor": following}
        route.fulfill(body=json.dumps(body), content_type="application/json")

    page = open_page("/", before=lambda page: page.route("**/v1/images?*", answer))
    for _ in range(1000):
        if to_end(page) == "10,000 pictures":
            break
        page.wait_for_timeout(20)
    assert len(shown(page)) == 10_000
    page.keyboard.press("Escape")
    page.locator(".tile .open").last.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Home")
    assert page.evaluate("scrollY") < 200


def test_nothing_moves_for_those_who_do_not_want_it(open_page):
    page = open_page("/", reduced_motion="reduce")
    shown(page)
    image = page.locator(".tile img").first
    assert image.evaluate("image => getComputedStyle(image).transitionDuration") in ("0s", "0ms")


def test_pictures_come_with_a_key(browser, collected):
    folder = collected[0]
    key = "a-key-of-some-length"
    # Of an index of its own: a folder is open in one process.
    model = EDJEModel.from_pretrained("demo")
    with ImageCollection.create(folder / "other", "images", model.contract()) as collection:
        picture = folder / "few"
        picture.mkdir()
        for n in range(2):
            Image.new("RGB", (60, 40), (200, 60 * n, 0)).save(picture / f"{n}.png")
        ingest_images(picture, collection, model, progress=False)
    service = ServiceProcess(
        "--index", folder / "other", "--images", picture,
        environment={"EDJE_QDRANT_SERVICE_KEY": key},
    )  # fmt: skip
    service.wait()
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(service.url)
        page.fill("#key-input", key)
        page.press("#key-input", "Enter")
        page.wait_for_selector(".tile img.here")
        assert page.get_attribute(".tile img.here", "src").startswith("blob:")
        assert page.locator("#add").is_hidden()
        page.locator(".tile").first.hover()
        page.locator(".tile .pick").first.click()
        with page.expect_download() as saved:
            page.click("#picked-zip")
        assert zipfile.is_zipfile(saved.value.path())
    finally:
        context.close()
        service.end()


def test_pictures_are_added_with_progress(open_page, collected, ids, tmp_path):
    page = open_page()
    shown(page)
    for n in range(3):
        Image.new("RGB", (64, 64), (40 * n, 90, 200)).save(tmp_path / f"new-{n}.png")
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    held = []
    page.route("**/v1/ingest", lambda route: held.append(route))
    page.set_input_files("#add-files", [*map(str, sorted(tmp_path.iterdir()))])
    until(lambda: page.locator("#upload").is_visible() and held)
    assert page.inner_text("#upload-title") == "Adding pictures: 0 of 4"
    assert page.locator("#upload-bar").is_visible()
    held[0].continue_()
    page.unroute("**/v1/ingest")
    page.wait_for_selector("#upload-title >> text=Done")
    assert page.inner_text("#upload-counts") == "3 added, 1 not added"
    assert "broken.png" in page.inner_text("#upload-failed")
    page.click("#upload-show")
    until(lambda: page.inner_text("#collection").startswith(f"{COUNT + COPIES + 3} pictures"))
    until(lambda: page.locator(".tile").count() == 3)  # those, at an address that can be sent
    assert asked(page)["f"][0].startswith("modified_at>=")
    page.goto(page.url.split("?")[0])
    assert not {*shown(page)[:3]} & {*ids}  # newest first: before those with an older date
    new = base64.b64encode((tmp_path / "new-1.png").read_bytes()).decode()
    page.evaluate(DROP, [new, "#drop-add"])
    page.wait_for_selector("#upload-title >> text=Done")
    assert page.inner_text("#upload-counts") == "1 there already"
    page.click("#upload-close")
    assert not page.locator("#upload").is_visible()
