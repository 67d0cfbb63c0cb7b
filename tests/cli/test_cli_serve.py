"""What the command `serve` refuses; what it serves is in tests/web."""

from __future__ import annotations

import pytest
from command_line import run

pytest.importorskip("fastapi", reason="needs the extra web")


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["--host", "0.0.0.0"], "EDJE_QDRANT_SERVICE_KEY"),
        (["--images", "nowhere"], "is not a folder"),
        (["--ingest"], "--images"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_loaded(args, match, monkeypatch):
    monkeypatch.delenv("EDJE_QDRANT_SERVICE_KEY", raising=False)
    result = run("serve", "--index", "x", *args)
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert match in line
