from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from command_line import run

from edje_qdrant.demo.run import draw_images

PAGE = Path(__file__).parent.parent / "docs" / "picture-to-text.md"


@pytest.fixture
def demo_pictures(tmp_path, monkeypatch):
    """The first of the scenes that the demo draws, where it draws them."""
    draw_images(tmp_path / "edje-demo" / "pictures", 20, 1, progress=False)
    monkeypatch.chdir(tmp_path)


def test_the_pages_python_runs_as_it_stands(demo_pictures, capsys):
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    for snippet in snippets:
        exec(compile(snippet, PAGE.name, "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["1", "2", "3"]
    assert lines[0].endswith("a red heart left of a purple arrow")
    assert lines[3].startswith("heart: ")
    assert {line.split(maxsplit=2)[2] for line in lines[4:6]} == {
        "a red heart left of a purple arrow {'source': 'mine'}",
        "a black star above a purple arrow {'source': 'other'}",
    }
    assert lines[6] == "3 of mine"
    assert lines[7] == "2 of 3 pairs kept"
    assert len(lines) == 8


def test_the_pages_commands_on_scenes_run_as_they_stand(demo_pictures):
    blocks = re.findall(r"```\n(edje-qdrant .*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    commands = [shlex.split(block) for block in blocks if "edje-demo" in block]
    assert [command[1] for command in commands] == ["match", "classify"]
    answers = []
    for command in commands:
        result = run(*(part for part in command[1:] if part != "\n"))
        assert result.exit_code == 0, result.output
        answers.append(result.stdout.splitlines()[1])
    assert answers[0].endswith("a red heart left of a purple arrow")
    assert answers[1].endswith("heart")
