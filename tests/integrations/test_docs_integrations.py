"""The page's examples run; a section whose library is missing is left out."""

from __future__ import annotations

import gc
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
LIBRARIES = {"LangChain": "langchain_core", "LlamaIndex": "llama_index.core",
             "Haystack": "haystack", "sentence-transformers": "sentence_transformers",
             "rerankers": "rerankers", "mteb": "mteb"}  # fmt: skip


# Sections that need a server, and are tested with one elsewhere.
ELSEWHERE = ("Ray", "Hugging Face hub")


def installed(library: str) -> bool:
    try:
        return importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.slow
def test_the_pages_examples_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {*LIBRARIES, *ELSEWHERE} <= {section.partition("\n")[0] for section in sections}
    left_out = []
    for section in sections:
        title = section.partition("\n")[0]
        if title in ELSEWHERE:
            continue
        if title in LIBRARIES and not installed(LIBRARIES[title]):
            left_out.append(title)
            continue
        for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
            exec(compile(block, PAGE.name, "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "20 0 ()"
    assert [line.split()[0] for line in lines[1:4]] == ["1", "2", "3"]
    if not left_out:
        assert len(lines) == 13
        assert lines[5].endswith(".png")
        assert lines[7].startswith("1 ")
        assert lines[7].endswith("index")
        assert lines[8].count(".png") == 3
        assert lines[10] == lines[9]
        assert lines[11] in "abc"
        assert lines[12] == "edje-qdrant/edje-demo t2i"
    names["retriever"].close()
    names.clear()
    gc.collect()
    if left_out:
        pytest.skip(f"all but {', '.join(left_out)}, whose extras are not installed")


def test_the_command_is_one() -> None:
    (block,) = re.findall(
        r"```\n(edje-qdrant attach.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    options = set(re.findall(r"--[a-z-]+", block))
    help_page = (PAGE.parent / "cli.md").read_text(encoding="utf-8")
    section = re.split(r"\n##+ ", help_page.split("### attach\n")[1])[0]
    assert options <= set(re.findall(r"--[a-z-]+", section))
