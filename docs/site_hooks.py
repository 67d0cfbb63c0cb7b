"""Hook of mkdocs: the pages of the site that are files outside `docs/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

#: Page -> file whose text it has. Links in these files start from the repository's root.
COPIES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the text of a page; for a copied file, with links that start from `docs/`."""
    copied = COPIES.get(page.file.src_uri)
    if copied is None:
        return markdown
    return (ROOT / copied).read_text(encoding="utf-8").replace("](docs/", "](")
