"""The page on clusters: its Python runs against the stand-in, its commands and figures hold."""

from __future__ import annotations

import ast
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from index_stand_in import StandIn

from edje_qdrant.index.qdrant import strict_mode

PAGE = (Path(__file__).parent.parent / "docs" / "cluster.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_settings_of_the_page_reach_the_server() -> None:
    names: dict[str, Any] = {}
    with StandIn() as server:
        for block in BLOCKS[:3]:
            exec(
                compile(block.replace("http://qdrant:6333", server.url), "cluster.md", "exec"),
                names,
            )
        asked = server.created["images"]
    assert (asked["shard_number"], asked["replication_factor"]) == (6, 2)
    assert asked["on_disk_payload"] is True
    assert "int8" in str(asked["quantization_config"])
    assert names["billion"].shards == 24
    assert names["placed"].quantized_memory == "pinned"


def test_the_call_of_the_page_fits_the_function() -> None:
    pytest.importorskip("ray.data", reason="needs the extra ray")
    from edje_qdrant.integrations.ray import ingest_dataset

    assert len(BLOCKS) == 4
    calls = [node for node in ast.walk(ast.parse(BLOCKS[3])) if isinstance(node, ast.Call)]
    (call,) = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "ingest_dataset"]
    named = {str(keyword.arg): keyword.value for keyword in call.keywords}
    inspect.signature(ingest_dataset).bind(*call.args, **named)


def test_the_command_is_one() -> None:
    (block,) = re.findall(r"```\n(edje-qdrant ingest.*?)```", PAGE, re.DOTALL)
    help_page = (Path(__file__).parent.parent / "docs" / "cli.md").read_text(encoding="utf-8")
    section = re.split(r"\n##+ ", help_page.split("### ingest\n")[1])[0]
    assert set(re.findall(r"--[a-z-]+", block)) <= set(re.findall(r"--[a-z-]+", section))


def test_the_table_of_memory_is_its_arithmetic() -> None:
    rows = re.findall(r"^\| .*(?:in memory|on disk) \| ([\d,]+) \| (.*) \|$", PAGE, re.MULTILINE)
    widths = [4096, 1024, 512, 256, 256, 128]  # of 1,024 numbers
    assert [int(each.replace(",", "")) for each, _ in rows] == [width + 256 for width in widths]
    units = {"GB": 1e9, "TB": 1e12}
    for (each, row), _ in zip(rows, widths, strict=True):
        for count, cell in zip((1e7, 1e8, 1e9), row.split(" | "), strict=True):
            number, unit = cell.split()
            assert float(number) * units[unit] == pytest.approx(
                int(each.replace(",", "")) * count, rel=0.02
            )


def test_what_is_said_of_limits_was_measured() -> None:
    results = Path(__file__).parent.parent / "docs" / "results"
    widths = json.loads((results / "graph-width.json").read_bytes())["rows"]
    for row in widths:
        said = next(share for least, share in strict_mode._BY_WIDTH if row["width"] >= least)
        assert said == pytest.approx(100 * row["best 100"], abs=0.06)
    quantized = json.loads((results / "quantization.json").read_bytes())["rows"]
    kinds = {row["quantization"]: row for row in quantized}
    for kind, factor, (least, said) in (
        ("int8", 2.0, (1, 98.9)),
        ("binary", 4.0, (2, 89.3)),
        ("binary", 4.0, (1, 67.1)),
    ):
        assert said == pytest.approx(100 * kinds[kind][f"rescored x{least}"], abs=0.06)
        assert said in [share for _, share in strict_mode._BY_OVERSAMPLING[factor]]
