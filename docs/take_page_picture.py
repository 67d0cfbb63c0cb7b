"""Take the screenshot `docs/page.png`: the search page on 300 drawn scenes, after a search.

    EDJE_CHROMIUM=/usr/bin/chromium python docs/take_page_picture.py [--out docs/page.png]

Needs the extra `dev` and Chromium, at EDJE_CHROMIUM or on the path.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "web"))

from service_process import ServiceProcess, folder_of_scenes  # noqa: E402

QUERY = "a huge black star on the left of a white moon"


def take(out: Path, *, scenes: int = 300) -> None:
    """Draw scenes, ingest and serve them, search, and take the screenshot."""
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("EDJE_CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        folder_of_scenes(folder, scenes)
        service = ServiceProcess("--index", folder / "index", "--images", folder / "scenes")
        service.wait()
        try:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            for _ in range(2):  # the first search is slower, with cold caches
                page.goto(f"{service.url}/?q={QUERY.replace(' ', '+')}")
                page.wait_for_selector(".right .hit")
                page.wait_for_load_state("networkidle")
            page.locator("#text").blur()
            page.screenshot(path=out)
            browser.close()
        finally:
            service.end()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "page.png")
    take(parser.parse_args().out)
