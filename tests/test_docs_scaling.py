from __future__ import annotations

import re
from pathlib import Path

import pytest

from edje_qdrant.collection import ImageCollection
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.scenes import draw_scenes
from edje_qdrant.model import EDJEModel

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"


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
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), {})
    shown = capsys.readouterr().out
    assert "side files" in shown
    assert "hits=12, misses=0, pictures=12" in shown
    assert ".png" in shown
