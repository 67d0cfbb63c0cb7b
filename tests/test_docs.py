from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize(
    ("page", "writer"),
    [
        ("cli", "write_cli"),
        ("results", "write_results"),
        ("results/storage-tables", "write_storage"),
        ("results/first-stages-table", "write_first_stages"),
        ("results/scaling-tables", "write_scaling"),
    ],
)
def test_a_page_says_what_it_was_written_from(page, writer):
    spec = importlib.util.spec_from_file_location(writer, DOCS / f"{writer}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert written == module.page(), f"run: python docs/{writer}.py"
