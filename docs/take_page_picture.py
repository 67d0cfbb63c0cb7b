r"""Take the pictures of the page in `docs/`, on 300 drawn scenes.

    EDJE_CHROMIUM=/usr/bin/chromium python docs/take_page_picture.py [--out docs]
    EDJE_CHROMIUM=/usr/bin/chromium python docs/take_page_picture.py \
        --emoji emoji --model runs/emoji-continued/model [--out docs]

`page-gallery.png`: a search. `page-compare.png`: both of its rankings. `page-phone.png`: the search
on a phone. `page-dark.png`: the whole collection, with selected pictures, in dark colours.
With `--emoji`, only `page-emoji.png`: a search of emoji that the model was not trained with
(`examples/emoji/README.md`), of the artists whose licences ask for no more than their names.

Needs the extra `dev` and Chromium, at EDJE_CHROMIUM or on the path.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote_plus

from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "web"))

from service_process import ServiceProcess, folder_of_scenes  # noqa: E402

from edje_qdrant.collection.collection import ImageCollection  # noqa: E402
from edje_qdrant.data.annotations import read_annotations  # noqa: E402
from edje_qdrant.ingest.ingest import ingest_images  # noqa: E402
from edje_qdrant.model import EDJEModel  # noqa: E402

QUERY = "a huge black star on the left of a white moon"
SEARCH = f"/?q={QUERY.replace(' ', '+')}&view="
EMOJI = f"/?q={quote_plus('消防员 中等肤色')}&view=gallery"  # firefighter, medium skin tone
SHOWN_ARTISTS = ("noto", "twemoji", "fluent-emoji-flat")
SHOWN = {"gallery": ".tile img.here", "compare": ".right .hit"}
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 860}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 780}, "device_scale_factor": 2, "is_mobile": True,
    "has_touch": True,
}  # fmt: skip
_LAST = datetime(2026, 9, 27, 18, tzinfo=timezone.utc)


def date_scenes(index: Path) -> None:
    """Give the scenes dates, a few a day, and indexes of them."""
    with ImageCollection.open(index, "images") as collection:
        for field in ("taken_at", "modified_at"):
            collection.create_payload_index(field, "datetime")
        points = [point for page in collection.index.scroll() for point in page]
        points.sort(key=lambda point: str(point.payload["path"]))
        days = (_LAST - timedelta(days=n // 4, hours=n % 4) for n in range(len(points)))
        collection.update_payload(
            {
                point.id: {"taken_at": day.isoformat()}
                for point, day in zip(points, days, strict=True)
            }
        )


def explained(page: Any) -> None:
    """Point at the best picture, and ask why it is."""
    page.hover(".tile >> nth=0")
    page.click(".tile .why >> nth=0")
    page.wait_for_selector(".heat")


def selected(page: Any) -> None:
    """Select three pictures."""
    for place in (1, 2, 6):
        page.hover(f".tile >> nth={place}")
        page.click(f".tile .pick >> nth={place}")
    page.mouse.move(640, 30)
    page.evaluate("document.activeElement.blur()")


def nothing(page: Any) -> None:
    """Leave the page as it is."""
    page.evaluate("document.activeElement.blur()")


#: Path of the page, options of the window, and what is done before the picture is taken.
Picture: TypeAlias = tuple[str, dict[str, Any], Callable[[Any], None]]
PICTURES: dict[str, Picture] = {
    "page-gallery": (f"{SEARCH}gallery", DESKTOP, explained),
    "page-compare": (f"{SEARCH}compare", DESKTOP, nothing),
    "page-phone": (f"{SEARCH}gallery", PHONE, nothing),
    "page-dark": ("/", {**DESKTOP, "color_scheme": "dark"}, selected),
}


def take(out: Path, *, scenes: int = 300) -> None:
    """Draw scenes, ingest and serve them, and take the pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder_of_scenes(folder, scenes)
        date_scenes(folder / "index")
        shoot(out, PICTURES, folder / "index", folder / "scenes", "--ingest")


def take_emoji(out: Path, data: Path, model: str) -> None:
    """Ingest and serve emoji that the model was not trained with, and take the picture."""
    files = [data / "val.jsonl", data / "combinations.en.jsonl"]
    images = {annotation.image for file in files for annotation in read_annotations(file)}
    shown = sorted(path for path in images if Path(path).parent.name in SHOWN_ARTISTS)
    loaded = EDJEModel.from_pretrained(model)
    with tempfile.TemporaryDirectory() as name:
        index = Path(name) / "index"
        with ImageCollection.create(index, "images", loaded.contract()) as collection:
            ingest_images(shown, collection, loaded)
        shoot(out, {"page-emoji": (EMOJI, DESKTOP, nothing)}, index, data, "--model", model)


def shoot(
    out: Path, pictures: Mapping[str, Picture], index: Path, images: Path, *more: str
) -> None:
    """Serve a collection, and take pictures of its page."""
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("EDJE_CHROMIUM") or shutil.which("chromium")
    service = ServiceProcess("--index", index, "--images", images, *more)
    service.wait()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for title, (path, options, prepare) in pictures.items():
                page = browser.new_page(**options)
                for _ in range(2):  # the first search is slower, with cold caches
                    page.goto(service.url + path)
                    page.wait_for_selector(SHOWN["compare" if "compare" in path else "gallery"])
                    page.wait_for_load_state("networkidle")
                prepare(page)
                page.wait_for_timeout(600)  # what is shown fades in
                with Image.open(io.BytesIO(page.screenshot())) as shot:
                    # 256 colours are a third of the size.
                    picture = shot.convert("RGB")
                    palette = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3)
                    few = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
                    few.save(out / f"{title}.png", optimize=True)
                page.close()
            browser.close()
    finally:
        service.end()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the pictures")
    parser.add_argument("--emoji", type=Path, help="what examples/emoji/make_data.py wrote")
    parser.add_argument("--model", help="a model trained on it")
    options = parser.parse_args()
    if options.emoji is None:
        take(options.out)
    elif options.model is None:
        parser.error("--emoji needs --model, a model trained with examples/recipes/emoji.toml")
    else:
        take_emoji(options.out, options.emoji, options.model)
