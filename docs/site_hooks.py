"""Hooks of mkdocs: the pages that are files outside `docs/`, and the link to the repository."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

#: Page -> file whose text it has. Links in these files start from the repository's root.
COPIES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_config(config: Any) -> Any:
    """Link to the repository that this is a clone of, if a browser can open its address."""
    found = subprocess.run(
        ["git", "config", "--get", "remote.origin.url"], cwd=ROOT, capture_output=True, text=True
    )
    address = web_address(found.stdout.strip())
    if address is not None and not config.repo_url:
        config.repo_url = address
        config.repo_name = address.split("/", 3)[3]
    return config


def web_address(remote: str) -> str | None:
    """Return the address of a git remote's page, without user and password; None for a folder."""
    remote = remote.removesuffix("/").removesuffix(".git")
    if found := re.fullmatch(r"(https?://)(?:[^@/]*@)?(.+)", remote):
        return found[1] + found[2]
    if found := re.fullmatch(r"(?:ssh://)?[^@/]+@([^:/]+)(?::\d+/|[:/])(.+)", remote):
        return f"https://{found[1]}/{found[2]}"
    return None


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the text of a page; for a copied file, with links that start from `docs/`."""
    copied = COPIES.get(page.file.src_uri)
    if copied is None:
        return markdown
    return (ROOT / copied).read_text(encoding="utf-8").replace("](docs/", "](")
