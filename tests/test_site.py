"""The site that `make docs` builds."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from edje_qdrant.cli.app import app
from edje_qdrant.planning.plan import load_constants

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
CHROMIUM = os.environ.get("EDJE_CHROMIUM") or shutil.which("chromium")

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on the path or at EDJE_CHROMIUM"
)

#: Whether the page and its code fit into the window, once the theme's script has made wide tables
#: scroll by themselves.
FITS = """() => document.documentElement.scrollWidth <= innerWidth
    && [...document.querySelectorAll(".md-typeset pre > code")].every(
        (code) => code.scrollWidth <= code.clientWidth + 1)"""

#: What a page may load: files of its own host.
OTHER_HOST = re.compile(r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["']?(?:https?:)?//""")


#: The clone's remote, for git; no page of a folder can be linked to.
REPOSITORY = "https://github.com/example/edje-qdrant"
REMOTE = {
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "remote.origin.url",
    "GIT_CONFIG_VALUE_0": f"{REPOSITORY}.git",
}


def test_every_page_is_in_the_navigation_once() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = settings.split("\nnav:\n")[1].split("\nplugins:")[0]
    listed = re.findall(r": ([\w-]+\.md)$", nav, re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in DOCS.glob("*.md"))
    assert len(set(listed)) == len(listed)


def test_every_picture_of_the_pages_is_there_and_says_what_it_shows() -> None:
    for page in [*DOCS.glob("*.md"), ROOT / "README.md"]:
        text = page.read_text(encoding="utf-8")
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
            assert len(words.split()) >= 3, f"{page.name}: {target} needs a description"


def test_every_png_of_the_docs_is_shown_on_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    for picture in DOCS.glob("*.png"):
        assert picture.name in text, picture.name


def test_the_pages_speak_plainly() -> None:
    """Words and phrases that readers have stumbled over."""
    puzzling = re.compile(
        r"\b(anew|meanwhile|whoever|nobody|torn off|better so|which of both|"
        r"belongs into|sooner|set aside|no end)\b"
    )
    pages = [*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for page in pages:
        found = puzzling.findall(page.read_text(encoding="utf-8"))
        assert not found, f"{page.name}: {found}"


def test_the_page_on_choosing_has_the_measured_figures() -> None:
    chosen = (DOCS / "choose.md").read_text(encoding="utf-8")
    tables = (DOCS / "results" / "storage-tables.md").read_text(encoding="utf-8")
    for codec in ("float16", "int8", "int4", "pq48", "pq32", "pq24", "pq16"):
        rows = [line.split(" | ") for line in tables.splitlines() if f"`{codec}` | " in line]
        (lost,) = [cells[4] for cells in rows if cells[0] == f"| `{codec}`" and len(cells) == 7]
        (size,) = [cells[2] for cells in rows if cells[0] == "| side file"]
        (row,) = [line for line in chosen.splitlines() if line.startswith(f"| `{codec}` | {size}")]
        assert row.split(" | ")[3] == (lost.strip() or "0")
    reranked = (DOCS / "results.md").read_text(encoding="utf-8")
    for candidates, right in re.findall(r"^\| (\d+) \| ([\d.]+) % \|", chosen, re.MULTILINE):
        assert f"| text to image | {candidates} | 0.503 | {float(right) / 100:.3f} " in reranked
    constants = load_constants()
    hours = 10_000 / constants["images_per_second_two_cores"]["value"] / 3600
    assert f"10,000 take {int(hours)} h {round(hours % 1 * 60)} min on two cores" in chosen


def test_every_command_of_the_pages_has_options_that_exist() -> None:
    """Commands in blocks of code, by the options' names of today."""
    known: dict[str, Any] = getattr(get_command(app), "commands")  # noqa: B009 - click's Group
    checked = 0
    for page in [*DOCS.glob("*.md"), ROOT / "README.md"]:
        if page.name in ("cli.md", "changelog.md"):
            continue
        for block in re.findall(r"^ *```\n(.*?)^ *```", page.read_text("utf-8"), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                found = re.search(r"(?:^|\s)edje-qdrant ([a-z-]+)( .*)?$", line)
                if found is None or found[1] == "...":
                    continue
                words = shlex.split(found[2] or "", comments=True)
                command = known[found[1]]
                names = {name for option in command.params for name in option.opts}
                names |= {name for option in command.params for name in option.secondary_opts}
                for word in words:
                    if word.startswith("--") and word != "--help":
                        assert word.split("=")[0] in names, f"{page.name}: {line.strip()}"
                checked += 1
    assert checked > 50


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("https://github.com/example/edje-qdrant.git", "https://github.com/example/edje-qdrant"),
        ("https://me:secret@git.example.org:8443/a/b/c/", "https://git.example.org:8443/a/b/c"),
        ("git@github.com:example/edje-qdrant.git", "https://github.com/example/edje-qdrant"),
        ("ssh://git@git.example.org:2222/a/b.git", "https://git.example.org/a/b"),
        ("/home/me/edje-qdrant", None),
        ("../edje-qdrant", None),
        ("file:///home/me/edje-qdrant", None),
        ("", None),
    ],
)
def test_the_repositorys_address_is_that_of_its_page(remote: str, address: str | None) -> None:
    assert runpy.run_path(str(DOCS / "site_hooks.py"))["web_address"](remote) == address


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The built site: its folder, and the address at which it is served."""
    pytest.importorskip("material", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1", **REMOTE}, check=True, timeout=280,
    )  # fmt: skip
    handler = partial(_Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield folder, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
def test_no_page_names_a_file_of_another_host(site: tuple[Path, str]) -> None:
    folder, _ = site
    pages = [*folder.rglob("*.html")]
    assert len(pages) > 25
    for page in pages:
        assert not OTHER_HOST.search(page.read_text(encoding="utf-8")), page
    for sheet in folder.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//", sheet.read_text("utf-8")), sheet


@pytest.mark.browser
@needs_chromium
def test_pages_ask_no_other_host_and_fit_every_width(site: tuple[Path, str]) -> None:
    folder, url = site
    sync_api = pytest.importorskip("playwright.sync_api")
    addresses = [
        f"{url}/{page.parent.relative_to(folder).as_posix()}/".replace("/./", "/")
        for page in folder.rglob("index.html")
    ]
    foreign: list[str] = []

    def note(request: Any) -> None:
        if not request.url.startswith((f"{url}/", "data:", "blob:")):
            foreign.append(request.url)

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", note)
        for address in addresses:
            page.goto(address)
            for width in (1280, 400):
                page.set_viewport_size({"width": width, "height": 900})
                try:
                    page.wait_for_function(FITS, timeout=5000)
                except sync_api.TimeoutError:
                    pytest.fail(f"{address} does not fit into {width} pixels")
        page.goto(f"{url}/tutorial/")
        assert page.locator("pre .md-clipboard, .md-code__button").count() > 5  # copy buttons
        page.goto(f"{url}/")
        for name in ("Search my photos", "Build on it", "Train and measure"):
            assert page.get_by_text(name, exact=True).first.is_visible()
        page.set_viewport_size({"width": 1280, "height": 900})
        link = page.locator(f'.md-header a[href="{REPOSITORY}"]')
        assert link.inner_text().strip() == "example/edje-qdrant"
        assert link.is_visible()
        browser.close()
    assert foreign == []


@pytest.mark.browser
@needs_chromium
def test_light_dark_and_the_system_s_colours_can_be_chosen(site: tuple[Path, str]) -> None:
    _, url = site
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(color_scheme="dark", viewport={"width": 1280, "height": 900})
        page.goto(url)
        assert page.get_attribute("body", "data-md-color-scheme") == "slate"
        seen = []
        for _ in range(3):
            page.locator("label.md-header__button:visible[for^=__palette]").click()
            seen.append(page.get_attribute("body", "data-md-color-scheme"))
        assert seen == ["default", "slate", "slate"]
        browser.close()


@pytest.mark.slow
def test_every_command_of_the_tutorial_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but `serve`, which `docs/take_tutorial_pictures.py` runs for its pictures."""
    from command_line import run

    spec = importlib.util.spec_from_file_location("tutorial", DOCS / "take_tutorial_pictures.py")
    assert spec is not None
    assert spec.loader is not None
    tutorial = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tutorial)
    monkeypatch.chdir(tmp_path)
    ran = []
    for command in tutorial.commands((DOCS / "tutorial.md").read_text(encoding="utf-8")):
        words = tutorial.words(command)
        if words[0] == "edje-qdrant":
            ran.append(words[1])
            if words[1] != "serve":
                assert run(*words[1:]).exit_code == 0, command
        elif words[0] == "python":
            exec(words[2].replace("count=200", "count=20"), {})
        elif words[0] == "mkdir":
            Path(words[1]).mkdir()
        elif words[0] == "cd":
            monkeypatch.chdir(words[1])
        elif words[0] == "rm":
            Path(words[1]).unlink()
        else:
            assert words[0] == "export", command
    assert ran.count("serve") == 2
    assert {"ingest", "info", "search", "verify", "export"} < set(ran)
    assert Path("photos.tar").is_file()
    assert list(Path("why").iterdir())


@pytest.mark.browser
@needs_chromium
def test_the_tutorials_pictures_can_be_taken(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, DOCS / "take_tutorial_pictures.py", "--out", tmp_path, "--pictures", "20"],
        check=True, timeout=280,
    )  # fmt: skip
    shown = re.findall(r"\((tutorial-\w+\.png)\)", (DOCS / "tutorial.md").read_text("utf-8"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(shown)


class _Quiet(SimpleHTTPRequestHandler):
    """Handler that logs nothing."""

    def log_message(self, *_: Any) -> None:
        """Log nothing."""
