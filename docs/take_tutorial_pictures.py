"""Run every command of `tutorial.md` in an empty folder, and take the page's pictures of it.

    EDJE_CHROMIUM=/usr/bin/chromium python docs/take_tutorial_pictures.py [--out docs]

The commands are read from the page, so a command that does not work ends the script. Those of the
installation and of the last section, which downloads a model, are left out. Needs the extra `dev`
and Chromium, at EDJE_CHROMIUM or on the path.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DOCS = Path(__file__).parent
QUERY = "a huge black star on the left of a white moon"
KEY = "a-key-for-the-tutorial"
SKIPPED = ("1. Install", "Your own photographs")
DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 400, "height": 800}


def commands(page: str) -> Iterator[str]:
    """Yield the tutorial's commands in order, without those of the sections that are skipped."""
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        if not section.startswith(SKIPPED):
            for block in re.findall(r"^```\n(.*?)^```", section, re.DOTALL | re.MULTILINE):
                yield from (line for line in block.splitlines() if not line.startswith("http"))


def words(command: str) -> list[str]:
    """Return a command's words, as a shell splits them."""
    return shlex.split(command)


def take(out: Path, *, pictures: int | None = None) -> None:
    """Run the commands, and take a screenshot at each step that opens the page.

    Args:
        out: Folder of the pictures.
        pictures: Number of drawn pictures, in place of the tutorial's.
    """
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("EDJE_CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        folder, environment = Path(name), _environment(Path(name))
        for command in commands((DOCS / "tutorial.md").read_text(encoding="utf-8")):
            if pictures is not None:
                command = re.sub(r"count=\d+", f"count={pictures}", command)
            if command.startswith("cd "):
                folder /= command.removeprefix("cd ")
            elif command.startswith("export "):
                environment["EDJE_QDRANT_SERVICE_KEY"] = KEY
            elif " serve " in command:
                _serve(command, folder, environment, browser, out)
            else:
                subprocess.run(
                    ["bash", "-ec", command], cwd=folder, env=environment, check=True, timeout=300
                )
        browser.close()


def _environment(folder: Path) -> dict[str, str]:
    """Return an environment in which `edje-qdrant` and `python` are those of this interpreter."""
    programs = folder / "bin"
    programs.mkdir()
    for name, module in (("edje-qdrant", "-m edje_qdrant "), ("python", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module}"$@"\n')
        program.chmod(0o755)
    root = os.environ.get("PYTHONPATH", str(DOCS.parent))
    return {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": root}


def _serve(
    command: str, folder: Path, environment: dict[str, str], browser: Browser, out: Path
) -> None:
    port = _free_port()
    service = subprocess.Popen(
        ["bash", "-c", f"exec {command} --port {port}"], cwd=folder, env=environment
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(f"{url}/healthz", service)
        if "--host" in command:
            _shared(url, browser, out)
        else:
            _own(url, browser, out)
    finally:
        service.terminate()
        service.wait(60)


def _own(url: str, browser: Browser, out: Path) -> None:
    page = browser.new_page(viewport=DESKTOP)
    _search(page, url)
    page.screenshot(path=out / "tutorial-search.png")
    page.click('#views [data-view="compare"]')
    page.wait_for_selector(".right .hit img")
    _settle(page)
    page.screenshot(path=out / "tutorial-compare.png")
    page.click('#views [data-view="gallery"]')
    page.locator(TILE).first.locator(".open").click()
    page.wait_for_selector("#words button", timeout=WAIT)  # the words that were explained
    page.click('#words button:has-text("white")')
    _settle(page)
    page.screenshot(path=out / "tutorial-open.png")
    page.close()


def _shared(url: str, browser: Browser, out: Path) -> None:
    page = browser.new_page(viewport=DESKTOP)
    page.goto(f"{url}/?q={QUERY.replace(' ', '+')}")
    page.wait_for_selector("#key[open]")
    page.screenshot(path=out / "tutorial-key.png")
    page.set_viewport_size(PHONE)
    page.fill("#key-input", KEY)
    page.keyboard.press("Enter")
    _settle(page)
    page.screenshot(path=out / "tutorial-phone.png")
    page.close()


#: A picture in the gallery.
TILE = ".tile:has(img.here)"

#: Milliseconds within which a step of the page is done, also on a busy machine.
WAIT = 120_000

#: Whether all pictures that are in the window have been loaded.
LOADED = """() => {
    const seen = [...document.querySelectorAll("img")].filter((image) => {
        const box = image.getBoundingClientRect();
        return box.width && box.bottom > 0 && box.top < innerHeight;
    });
    return seen.length > 2 && seen.every((image) => image.complete && image.naturalWidth);
}"""


def _search(page: Page, url: str) -> None:
    page.goto(f"{url}/?q={QUERY.replace(' ', '+')}")
    page.wait_for_selector(TILE, timeout=WAIT)
    _settle(page)
    page.locator("#text").blur()


def _settle(page: Page) -> None:
    page.wait_for_function(LOADED, timeout=WAIT)
    page.wait_for_timeout(500)  # until pictures have faded in


def _free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait(url: str, service: subprocess.Popen[Any]) -> None:
    for _ in range(600):
        if service.poll() is not None:
            raise SystemExit(f"the service ended with code {service.returncode}")
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
        else:
            return
    raise SystemExit(f"{url} does not answer")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=DOCS)
    parser.add_argument("--pictures", type=int, help="draw this number, in place of the tutorial's")
    options = parser.parse_args()
    take(options.out, pictures=options.pictures)
