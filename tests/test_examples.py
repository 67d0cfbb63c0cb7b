"""The numbered examples, run one after another as a reader would run them."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from index_stand_in import StandIn
from ray_cluster import WARNINGS, local_cluster

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


def run(name: str, *args: str) -> None:
    runpy.run_path(str(EXAMPLES / name))["main"](*args)


# In their order: the first one writes what the next ones search.
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("01_ingest.py", ["60 added, 0 there already", "2,080 bytes of tokens an image"]),
        ("02_search.py", ["#1 (was #", "#10 (was #", "rerank"]),
        ("03_server.py", ["60 images copied to :memory:, 0 there", "a red star -> "]),
        ("04_filters_and_budget.py", ["two years: 24 of 24", "in 30 ms: ", "sure: "]),
        ("05_train_on_your_pairs.py", ["right answers accepted", "--model example-model/model"]),
        ("06_evaluate.py", ["R@1", "reranked"]),
        ("07_langchain.py", ["found: ", "#1  logit ", "#3  logit "]),
    ],
)
def test_an_example_runs(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    said: list[str],
) -> None:
    monkeypatch.chdir(folder)
    run(name)
    printed = capsys.readouterr().out
    for words in said:
        assert words in printed, printed


# Once more, on what they left.
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("01_ingest.py", "0 added, 60 there already"),
        ("02_search.py", "#1 (was #"),
        ("03_server.py", "60 images copied to :memory:, 0 there already"),
        ("04_filters_and_budget.py", "two years: 24 of 24"),
        pytest.param(
            "05_train_on_your_pairs.py", "--model example-model/model", marks=pytest.mark.slow
        ),
        pytest.param("06_evaluate.py", "reranked", marks=pytest.mark.slow),
        ("07_langchain.py", "#1  logit "),
    ],
)
def test_an_example_runs_twice(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    said: str,
) -> None:
    monkeypatch.chdir(folder)
    run(name)
    assert said in capsys.readouterr().out


def test_the_example_with_a_server_runs_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    with StandIn() as server:
        for copied, there in ((60, 0), (0, 60)):
            run("03_server.py", server.url)
            printed = capsys.readouterr().out
            assert f"{copied} images copied to {server.url}, {there} there already" in printed
            assert "a red star -> " in printed


@pytest.mark.slow
@pytest.mark.filterwarnings(WARNINGS)
def test_the_example_with_ray_fills_a_server(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray.data", reason="needs the extra ray")
    monkeypatch.chdir(folder)
    with local_cluster(num_cpus=2), StandIn() as server:
        run("08_ray.py", server.url)
        assert server.created["ray-pictures"]["shard_number"] == 2
        printed = capsys.readouterr().out
        assert "60 added, 0 there already, 0 unreadable" in printed
        assert "#1 (was #" in printed
        run("08_ray.py", server.url)
    printed = capsys.readouterr().out
    assert "0 added, 60 there already, 0 unreadable" in printed
    assert "#1 (was #" in printed
