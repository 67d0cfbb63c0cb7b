from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize(
    ("page", "writer"),
    [
        ("cli", "write_cli"),
        ("results", "write_results"),
        ("results/storage-tables", "write_storage"),
        ("results/first-stages-table", "write_first_stages"),
        ("results/heat-maps-tables", "write_heat_maps"),
        ("results/duplicates-tables", "write_duplicates"),
        ("results/benchmarks-tables", "write_benchmarks"),
        ("results/scaling-tables", "write_scaling"),
        ("results/targets-table", "write_targets"),
        ("results/service-table", "write_service"),
        ("results/without-torch-table", "write_without_torch"),
        ("results/cluster-table", "write_cluster"),
        ("results/photo-library-table", "write_photo_library"),
        ("results/migration-table", "write_migration"),
    ],
)
def test_a_page_says_what_it_was_written_from(page, writer, monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    spec = importlib.util.spec_from_file_location(writer, DOCS / f"{writer}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert written == module.page(), f"run: python docs/{writer}.py"


def test_the_python_of_the_page_on_explaining_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    page = (DOCS / "explain.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "explain.md", "exec"), {})
    words = re.findall(r"explain_match\(model, \"(.*?)\"", snippet)[0].split()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("score ")
    assert [line.split()[0] for line in lines[1:]] == words
    assert (tmp_path / "explanation.png").is_file()


@pytest.mark.slow
def test_the_python_of_the_page_on_migrations_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    page = (DOCS / "migration.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "migration.md", "exec"), {})
    before, agreement, after = capsys.readouterr().out.splitlines()
    assert before == after == str(tmp_path / "red.png")
    assert agreement == "100% of the hits are the same"


def test_the_python_of_the_page_on_sources_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    page = (DOCS / "where-images-are.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "where-images-are.md", "exec"), {})
    member, memory = sorted(capsys.readouterr().out.splitlines())
    assert member == f"{tmp_path}/photos.tar#member=cats/1.png"
    assert memory.startswith("memory:")
