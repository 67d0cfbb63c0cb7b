from __future__ import annotations

import re
from pathlib import Path

from command_line import run

from edje_qdrant.demo.run import draw_images

ROOT = Path(__file__).parent.parent


def test_the_readmes_python_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    draw_images(tmp_path / "pictures", 20, 5, progress=False)
    monkeypatch.chdir(tmp_path)
    for added in (20, 0):  # it can be run again
        exec(compile(snippet, "README.md", "exec"), {})
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"{added} images added, 0 unreadable"
        assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3", "4", "5"]
        assert all(Path(line.split()[-1]).is_file() for line in lines[1:])


def test_the_readmes_python_runs_on_what_the_command_ingested(tmp_path, monkeypatch, capsys):
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (folder,) = set(re.findall(r'open(?:_or_create)?\("(.*?)"', snippet))
    draw_images(tmp_path / "pictures", 20, 5, progress=False)
    monkeypatch.chdir(tmp_path)
    assert run("ingest", "pictures", "--index", folder).exit_code == 0
    # The folder of the command in the README, which has another model, is not the same one.
    assert f"--index {folder} " not in (ROOT / "README.md").read_text()
    capsys.readouterr()
    exec(compile(snippet, "README.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[0] == "0 images added, 0 unreadable"


def test_every_picture_and_page_the_readme_links_to_is_there():
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link
