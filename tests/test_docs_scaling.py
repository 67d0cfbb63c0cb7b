from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.scenes import draw_scenes
from edje_qdrant.model import EDJEModel

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_pages_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = EDJEModel.from_pretrained("demo")
    with ImageCollection.create("photos", "images", model.contract()) as collection:
        pictures = [draw(scene) for scene in draw_scenes("test", 0, 12)]
        ids = [f"00000000-0000-4000-8000-{number:012d}" for number in range(12)]
        payloads = [{"path": f"{number}.png"} for number in range(12)]
        collection.add(ids, model.encode_images(pictures), payloads)
    blocks = examples()
    assert len(blocks) == 5
    for block in blocks[:4]:
        exec(compile(block, PAGE.name, "exec"), {})
    shown = capsys.readouterr().out
    assert "side files" in shown
    assert "hits=12, misses=0, images=12" in shown
    assert re.search(r"device \d+\.png", shown)
    assert ".png" in shown


@pytest.mark.slow
def test_the_pages_example_of_processes_runs_as_a_script(tmp_path: Path) -> None:
    (tmp_path / "scenes" / "pictures").mkdir(parents=True)
    for number, scene in enumerate(draw_scenes("test", 0, 12)):
        draw(scene).save(tmp_path / "scenes" / "pictures" / f"{number}.png")
    (tmp_path / "script.py").write_text(examples()[4], encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout == "12 ()\n"
