"""Two that want to write, many that read while one writes, and a server that goes away."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from proof_server import Server
from proof_world import draw_images

FEW_OR_MANY = [pytest.param(1, id="few"), pytest.param(6, id="many", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def pictures(root: Path) -> list[str]:
    return [str(path) for path in draw_images(root / "pictures", 12)]


def two(server: Server, one: str, other: str, one_has: Any, other_has: Any) -> tuple[Any, Any]:
    """Run two tasks side by side; return their results."""
    ended = server.run_all(
        {"task": one, "arguments": one_has}, {"task": other, "arguments": other_has}
    )
    for end in ended:
        assert end.status == 0, end.error
    return ended[0].result, ended[1].result


def test_a_second_writer_of_a_side_file_is_told_so(server: Server, scratch: Path) -> None:
    shared = {"folder": str(scratch / "store"), "meet": str(scratch)}
    records, said = two(server, "proof_reading:hold", "proof_reading:intrude", shared, shared)
    assert records == 12
    assert len(said) == 6
    for message in said:
        assert str(scratch / "store") in message
        assert "close that one first" in message


def test_a_second_opener_of_a_collection_is_told_so(
    server: Server, scratch: Path, pictures: list[str]
) -> None:
    shared = {"folder": str(scratch / "c"), "meet": str(scratch)}
    state, said = two(
        server,
        "proof_reading:hold_collection",
        "proof_reading:intrude_on_collection",
        {**shared, "pictures": pictures},
        shared,
    )
    assert "open in another process; close that one first" in said
    assert state["count"] == len(pictures)
    assert state["findings"] == []
    assert server.ask("proof_world:state", folder=str(scratch / "c")) == state


def test_a_killed_writer_holds_nothing(server: Server, scratch: Path) -> None:
    shared = {"folder": str(scratch / "store"), "meet": str(scratch)}
    killed, intruder = server.run_all(
        {"task": "proof_reading:hold_for_ever", "arguments": shared},
        {"task": "proof_reading:kill_and_write", "arguments": shared},
    )
    assert killed.status == -signal.SIGKILL
    assert intruder.status == 0, intruder.error


@pytest.mark.parametrize("times", FEW_OR_MANY)
def test_readers_in_other_processes_see_what_was_written_or_that_it_moved(
    server: Server, root: Path, scratch: Path, tally: Counter[str], times: int
) -> None:
    book = str(root / "book.safetensors")
    server.ask("proof_world:write_codebook", path=book)
    shared = {"meet": str(scratch), "book": book}
    writer, *readers = server.run_all(
        {
            "task": "proof_reading:write_on",
            "arguments": {
                **shared,
                "folder": str(scratch / "c"),
                "rounds": 9 * times,
                "readers": 3,
            },
        },
        *(
            {"task": "proof_reading:read_on", "arguments": {**shared, "seed": seed}}
            for seed in range(3)
        ),
    )
    assert writer.status == 0, writer.error
    for reader in readers:
        assert reader.status == 0, reader.error
        assert reader.result["latest: read"] > 0
        assert reader.result["older: read"] > 0
        for what, count in reader.result.items():
            tally[f"reads beside a writer, {what}"] += count


@pytest.mark.parametrize("times", FEW_OR_MANY)
def test_searches_go_on_while_tokens_move(
    server: Server,
    scratch: Path,
    pictures: list[str],
    tally: Counter[str],
    times: int,
) -> None:
    server.ask("proof_killing:killable", folder=str(scratch / "c"), operation="ingest",
               pictures=pictures, tokens="file")  # fmt: skip
    (scratch / "archives").mkdir()
    counts = server.ask("proof_reading:search_on", folder=str(scratch / "c"),
                        scratch=str(scratch / "archives"), rounds=4 * times)  # fmt: skip
    assert counts["changes"] == 16 * times
    assert counts["searches"] >= 3
    tally["searches while tokens moved"] += counts["searches"]


@pytest.mark.parametrize("times", FEW_OR_MANY)
@pytest.mark.parametrize("tokens", ["file", "payload"])
@pytest.mark.parametrize(
    ("how", "cases"),
    [("hangs up", 6), pytest.param("is late", 1, marks=pytest.mark.slow)],
)
def test_a_server_that_goes_away_keeps_what_it_acknowledged(
    server: Server,
    scratch: Path,
    pictures: list[str],
    tally: Counter[str],
    tokens: str,
    how: str,
    cases: int,
    times: int,
) -> None:
    came = server.ask(
        "proof_reading:server_goes",
        scratch=str(scratch),
        pictures=pictures[:8],
        tokens=tokens,
        how=how,
        cases=cases * times,
        seed=times,
    )
    first, *others = came["states"]
    assert first["count"] == 8
    assert first["findings"] == []
    assert len(others) == len(came["said"]) == cases * times
    for state, message in zip(others, came["said"], strict=True):
        assert "no answer from Qdrant" in message
        assert state == first
    tally[f"a server that {how}"] += len(others)
