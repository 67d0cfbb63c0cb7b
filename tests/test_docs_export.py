from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from rounding import float32_slack

from edje_qdrant import ImageCollection
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.scenes import draw_scenes
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.onnx.export import export_onnx
from edje_qdrant.model.onnx.text_encoder import export_text_encoder

PAGE = Path(__file__).parent.parent / "docs" / "export.md"


@pytest.mark.slow
def test_the_pages_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    export, use, search = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(export, PAGE.name, "exec"), {})
    assert "edje" not in use
    assert "torch" not in use
    names: dict[str, object] = {}
    exec(compile(use, PAGE.name, "exec"), names)
    model = EDJEModel.from_pretrained("demo", device="cpu")
    expected = model.score(str(names["text"]), np.load("tokens.npy"))
    np.testing.assert_allclose(np.asarray(names["logits"]), expected, atol=float32_slack(expected))
    folder = tmp_path / "exported"
    folder.mkdir()
    export_onnx(model, folder / "joint.onnx")
    export_text_encoder(model, folder / "text_encoder.onnx")
    with ImageCollection.create("./collection", "images", model.contract()) as collection:
        pictures = [draw(scene) for scene in draw_scenes("test", 0, 4)]
        ids = [f"00000000-0000-4000-8000-{number:012d}" for number in range(4)]
        collection.add(ids, model.encode_images(pictures), [{"path": "a.png"}] * 4)
    exec(compile(search, PAGE.name, "exec"), {})
