from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("av")

PAGE = Path(__file__).parent.parent / "docs" / "films-and-documents.md"


@pytest.mark.slow
def test_the_pages_examples_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    found = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in found} == {"one.mp4", "two.mp4"}


def test_the_options_of_the_page_are_the_commands() -> None:
    help_page = (PAGE.parent / "cli.md").read_text(encoding="utf-8")
    commands = re.findall(r"^edje-qdrant ingest .*", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    options = {option for line in commands for option in re.findall(r"--[a-z-]+", line)}
    assert {"--frames-every", "--pdf-pages"} <= options <= set(re.findall(r"--[a-z-]+", help_page))
