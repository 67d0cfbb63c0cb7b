"""A disk that is full or fails is said so, and when that is over nothing is lost."""

from __future__ import annotations

import errno
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from proof_faulting import OPERATIONS
from proof_server import Server
from proof_world import copy_folder, draw_images

DEFAULT, ALL = 2, 24


def _slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


# What the default tests leave out: each has a twin among the others.
FURTHER = {"switch", "transcode-pq16", "export"}
PARTS = [pytest.param(0, id="few"), pytest.param(1, id="many", marks=pytest.mark.slow)]


@dataclass
class World:
    root: Path
    given: dict[str, Any]


@pytest.fixture(scope="module")
def world(server: Server, root: Path) -> World:
    """Collections to start from."""
    pictures = [str(path) for path in draw_images(root / "pictures", 14)]
    more = [str(path) for path in draw_images(root / "more", 5, seed=1)]
    book = str(root / "book.safetensors")
    server.ask("proof_world:write_codebook", path=book)
    for name, given in (("plain", pictures), ("half", pictures[:7])):
        server.ask("proof_killing:killable", folder=str(root / name), operation="ingest",
                   pictures=given, tokens="file")  # fmt: skip
    server.ask("proof_killing:with_holes", folder=str(root / "holed"), pictures=pictures, more=more)
    server.ask("proof_killing:damaged", folder=str(copy_folder(root / "plain", root / "damaged")))
    ids = server.ask("proof_world:state", folder=str(root / "plain"))["ids"]
    return World(root, {"pictures": pictures, "book": book, "ids": ids[::4]})


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "operation", [_slow(name) if name in FURTHER else name for name in OPERATIONS]
)
def test_a_refused_call_is_said_and_survived(
    server: Server, world: World, scratch: Path, tally: Counter[str], operation: str, part: int
) -> None:
    common = {
        "root": str(world.root),
        "scratch": str(scratch),
        "operation": operation,
        "given": world.given,
    }
    random = Random(f"{operation} {part}")
    count = (DEFAULT, ALL - DEFAULT)[part] // 2
    for name in ("ENOSPC", "EIO"):
        number = getattr(errno, name)
        usual = server.ask("proof_faulting:undisturbed", **common, number=number)
        faults = [
            {
                # One in each part of the whole run, so that all of it has its turn.
                "fail_at": 1 + int((turn + random.random()) * usual["calls"] / count),
                "number": number,
                "lasting": random.random() < 0.5,
            }
            for turn in range(count)
        ]
        done = server.ask("proof_faulting:fault_cases", **common, expected=usual["after"],
                          faults=faults)  # fmt: skip
        assert len(done) == count
        for failed, came in done:
            tally["faults, in all"] += 1
            tally[f"{name} from {failed}: {came}"] += 1


@pytest.mark.parametrize(
    ("kilobytes", "spare", "ends"),
    [
        # Nearly full from the start, and after some images: the index says so in time.
        (60 << 10, True, {3}),
        (65 << 10, True, {3}),
        ((64 << 10) + 600, True, {0, 3}),
        *[_slow((64 << 10) + kb, True, {0, 3}) for kb in (300, 900, 1100)],
        # Were it not to look, the system would end the process or the engine would: no harm either.
        *[(kb, False, {0, 3, -signal.SIGBUS}) for kb in (400, 950)],
        *[_slow(kb, False, {0, 3, -signal.SIGBUS}) for kb in (700, 900, 1000, 1050)],
    ],
)
def test_a_disk_that_is_really_full(
    server: Server,
    world: World,
    scratch: Path,
    tally: Counter[str],
    kilobytes: int,
    spare: bool,
    ends: set[int],
) -> None:
    came = server.ask(
        "proof_faulting:full_disk",
        mount=str(scratch),
        pictures=world.given["pictures"],
        kilobytes=kilobytes,
        spare=spare,
    )
    if not came:
        pytest.skip("no user may mount a small disk here")
    assert came["first"] in ends
    expected = server.ask("proof_world:state", folder=str(world.root / "plain"))
    assert came["state"] == expected
    words = {0: "room enough", 3: "StoreError", -signal.SIGBUS: "SIGBUS"}
    guard = "" if spare else ", without looking first"
    tally[f"a full disk{guard}: {words[came['first']]}"] += 1
