"""The files of Pillow's own tests are read or refused by name: no crash, no hang, no stray line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pillow_files import pillow_files

READ = """
import json, sys
from pathlib import Path
from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import ignore_decoder_warnings, open_upright
ignore_decoder_warnings()
for path in sorted(path for path in Path(sys.argv[1]).rglob("*") if path.is_file()):
    reason = None
    try:
        image = open_upright(path)
        assert image.mode == "RGB" and not image.info.get("icc_profile")
    except ImageReadError as error:
        reason = str(error)
        assert str(path) in reason and "\\n" not in reason, reason
    print(json.dumps([str(path), reason]), flush=True)
"""


@pytest.mark.slow
def test_every_file_is_read_or_refused_by_name() -> None:
    command = [sys.executable, "-c", READ, str(pillow_files())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    # libtiff, in C, writes by itself, without the file's name; processes that decode catch it.
    stray = [line for line in done.stderr.splitlines() if not line.startswith("tempfile.tif: ")]
    assert not stray
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) > 1000
    assert sum(reason is None for _, reason in answers) > 650


@pytest.mark.slow
def test_all_are_ingested_or_named_without_a_stray_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edje_qdrant", "ingest", str(pillow_files())]
    command += ["--index", str(tmp_path / "index"), "--model", "demo", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stderr.splitlines()
    assert [line for line in lines if not line.startswith("note: the model 'demo'")] == []
    report = json.loads(done.stdout)
    assert report["added"] > 650
    for failure in report["failed"]:
        assert failure["path"].startswith(str(pillow_files()))
        assert failure["reason"]
        assert "\n" not in failure["reason"]
