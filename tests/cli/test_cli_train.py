from __future__ import annotations

from pathlib import Path

import pytest

from edje_qdrant.cli.app import main


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["train", *args])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def recipe(folder: Path) -> str:
    path = folder / "mine.toml"
    path.write_text(
        "[model]\nencoder = 'x'\n[[data.train]]\npath = 'none.json'\n"
        "[data.validation]\npath = 'none.json'\n[optimisation]\nsteps = 5\n"
    )
    return str(path)


def test_what_is_wrong_takes_one_line(tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert "cannot read the recipe" in refused(capsys, *out, "--recipe", "none.toml")
    mine = [*out, "--recipe", recipe(tmp_path)]
    assert "NAME=VALUE" in refused(capsys, *mine, "--set", "steps")
    assert "optimisation.lr: Extra" in refused(capsys, *mine, "--set", "optimisation.lr=1")
    assert "--work is only for" in refused(capsys, *mine, "--work", str(tmp_path))
    assert "--cache-vision" in refused(
        capsys, *out, "--recipe", "demo", "--cache-vision", str(tmp_path)
    )
    assert "scenes.pictures" in refused(
        capsys, *out, "--recipe", "demo", "--set", "scenes.pictures=1"
    )
    assert not (tmp_path / "out").exists()


def test_a_value_is_json_where_it_can_be(tmp_path, capsys):
    mine = ["--out", str(tmp_path / "out"), "--recipe", recipe(tmp_path)]
    error = refused(capsys, *mine, "--set", 'data.validation={"path": 3}')
    assert "data.validation.path: Input should be a valid string" in error
