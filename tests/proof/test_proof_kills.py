"""Killed at any moment, and run again, a collection is what it is without a kill."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from proof_server import Ended, Server
from proof_world import copy_folder, draw_pictures

# Operation, its arguments, and how many of the cases are its.
SHARES = {
    "ingest-file": 20,
    "ingest-payload": 6,
    "compact": 7,
    "transcode-int8": 7,
    "transcode-pq16": 7,
    "repair": 5,
    "delete": 4,
}
ORDER = [kind for turn in range(20) for kind, share in SHARES.items() if turn < share]
DEFAULT, ALL = 20, 150


@dataclass
class Job:
    """An operation, what it starts from, and how it passes and ends undisturbed."""

    operation: str
    arguments: dict[str, Any]
    template: Path | None
    passed: dict[str, int] = field(default_factory=dict)
    expected: dict[str, Any] = field(default_factory=dict)

    def folder(self, scratch: Path) -> str:
        if self.template is not None:
            copy_folder(self.template, scratch / "c")
        return str(scratch / "c")

    def run(self, server: Server, folder: str, kill: dict[str, Any] | None = None) -> Ended:
        after = kill.get("after") if kill else None
        return server.run(
            "proof_killing:killable",
            kill_after=after,
            folder=folder,
            operation=self.operation,
            kill=None if after is not None else kill,
            **self.arguments,
        )


@pytest.fixture(scope="module")
def jobs(server: Server, root: Path) -> dict[str, Job]:
    """Every kind of operation, run once without a kill."""
    pictures = str(root / "pictures")
    ids_of_paths = draw_pictures(root / "pictures", 18)
    more = [str(path) for path in draw_pictures(root / "more", 5, seed=1)]
    book = str(root / "book.safetensors")
    server.ask("proof_world:write_codebook", path=book)

    plain = root / "plain"
    server.ask("proof_killing:killable", folder=str(plain), operation="ingest",
               pictures=pictures, tokens="file")  # fmt: skip
    holed = root / "holed"
    server.ask("proof_killing:with_holes", folder=str(holed), pictures=pictures, more=more)
    damaged = copy_folder(plain, root / "damaged")
    server.ask("proof_killing:damaged", folder=str(damaged))
    ids = server.ask("proof_world:state", folder=str(plain))["ids"]
    assert len(ids) == len(ids_of_paths)
    jobs = {
        "ingest-file": Job("ingest", {"pictures": pictures, "tokens": "file"}, None),
        "ingest-payload": Job("ingest", {"pictures": pictures, "tokens": "payload"}, None),
        "compact": Job("compact", {}, holed),
        "transcode-int8": Job("transcode", {"codec": "int8"}, plain),
        "transcode-pq16": Job("transcode", {"codec": book}, plain),
        "repair": Job("repair", {}, damaged),
        "delete": Job("delete", {"ids": ids[::3]}, plain),
    }
    for kind, job in jobs.items():
        folder = root / f"undisturbed-{kind}"
        folder.mkdir()
        ended = job.run(server, job.folder(folder))
        assert ended.status == 0, ended.error
        job.passed = ended.result
        job.expected = server.ask("proof_world:state", folder=str(folder / "c"))
        assert job.expected["findings"] == []
    for kind in ("compact", "repair"):
        assert jobs[kind].expected["rankings"] == jobs["ingest-file"].expected["rankings"]
    return jobs


def chosen_kill(job: Job, random: Random, turn: int, again: bool) -> dict[str, Any]:
    """Choose where to die; each point has its turn, and some deaths are by the clock alone."""
    if random.random() < 0.2:
        return {"after": random.uniform(0.0, 0.5)}
    names = sorted(job.passed)
    name = random.choice(names) if again else names[turn % len(names)]
    number = random.randint(1, 1 if again else job.passed[name])
    return {"point": name, "number": number, "delay": random.choice([0.0, 0.002, 0.01, 0.03])}


CASES = [
    pytest.param(seed, marks=[pytest.mark.slow] if seed >= DEFAULT else [], id=f"{seed}-{kind}")
    for seed, kind in enumerate((ORDER * ALL)[:ALL])
]


@pytest.mark.parametrize("seed", CASES)
def test_killed_and_run_again(
    server: Server, jobs: dict[str, Job], scratch: Path, tally: Counter[str], seed: int
) -> None:
    kind = (ORDER * ALL)[seed]
    job, random = jobs[kind], Random(seed)
    turn = sum(1 for earlier in (ORDER * ALL)[:seed] if earlier == kind) * 7
    folder = job.folder(scratch)
    kills = []
    for attempt in range(random.choice([1, 1, 1, 2, 2, 4])):
        kill = chosen_kill(job, random, turn, again=attempt > 0)
        ended = job.run(server, folder, kill)
        kills.append((kill, ended.status))
        assert ended.killed or ended.status == 0, f"{kills}\n{ended.error}"
        tally[f"kills during {kind}"] += ended.killed
        tally["kills, in all"] += ended.killed
    ended = job.run(server, folder)
    assert ended.status == 0, f"{kills}\n{ended.error}"
    assert server.ask("proof_world:state", folder=folder) == job.expected, kills
    if kind != "ingest-payload":
        tidied = server.ask("proof_killing:compacted_state", folder=folder)
        assert sum(tidied.pop("used")) == job.expected["count"], kills
        assert tidied.pop("strays") == [], kills
        assert tidied == job.expected, kills
