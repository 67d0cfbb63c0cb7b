from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run


@pytest.mark.slow
def test_it_writes_both_files_and_says_so(tmp_path: Path, tiny_folder: Path) -> None:
    command = ["export-onnx", "--model", str(tiny_folder), "--out", str(tmp_path / "joint.onnx")]
    result = run(*command, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["path"] == str(tmp_path / "joint.onnx")
    assert told["nbytes"] == (tmp_path / "joint.onnx").stat().st_size
    assert told["outputs"] == ["logits"]
    assert 0 <= told["max_difference"] < 1e-4
    json.loads((tmp_path / told["tokenizer"]).read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_text_encoder_is_written_beside_it(tmp_path: Path, tiny_folder: Path) -> None:
    out = tmp_path / "joint.onnx"
    result = run("export-onnx", "--model", tiny_folder, "--out", out, "--text-encoder", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])["text_encoder"]
    assert told["path"] == str(tmp_path / "text_encoder.onnx")
    assert told["nbytes"] == (tmp_path / "text_encoder.onnx").stat().st_size
    assert 0 <= told["max_difference"] < 1e-5


def test_a_name_that_will_not_do_is_refused(tmp_path: Path) -> None:
    result = run("export-onnx", "--out", tmp_path / "joint.pt")
    assert result.exit_code == 2
    assert result.stderr == "error: name the file something.onnx, not joint.pt\n"


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--int8"]])
def test_as_a_process_it_prints_one_line_and_no_noise(tmp_path: Path, more: list[str]) -> None:
    command = [sys.executable, "-m", "edje_qdrant", "export-onnx", "--out", "joint.onnx", *more]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("wrote joint.onnx (")
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""
