from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "words.md"


def test_the_pages_examples_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "words"}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    assert capsys.readouterr().out.splitlines() == [
        "a circle in Lisbon -> IMG_0-harbour.png Alfama, Lisbon",
        "porto -> IMG_1-harbour.png ['Porto', 'the bridge at night']",
        "sunset beach 2019 -> IMG_2-sunsetBeach.png None",
        "1",
        "STOP",
    ]
