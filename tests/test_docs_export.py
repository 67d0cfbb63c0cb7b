from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from rounding import float32_slack

from edje_qdrant.model import EDJEModel

PAGE = Path(__file__).parent.parent / "docs" / "export.md"


@pytest.mark.slow
def test_the_pages_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    export, use = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(export, PAGE.name, "exec"), {})
    assert "edje" not in use
    assert "torch" not in use
    names: dict[str, object] = {}
    exec(compile(use, PAGE.name, "exec"), names)
    model = EDJEModel.from_pretrained("demo", device="cpu")
    expected = model.score(str(names["text"]), np.load("tokens.npy"))
    np.testing.assert_allclose(np.asarray(names["logits"]), expected, atol=float32_slack(expected))
