"""Killed at any moment, and run again, a collection is what it is without a kill."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from proof_server import Ended, Server
from proof_world import copy_folder, draw_images

# Of so many cases, how many are of which kind.
SHARES = {
    "ingest-file": 18,
    "ingest-payload": 6,
    "compact": 6,
    "transcode-int8": 6,
    "transcode-pq16": 6,
    "repair": 6,
    "delete": 6,
}
DEFAULT, ALL = 11, 324
KINDS = [kind for kind, share in SHARES.items() for _ in range(share)] * (ALL // 54)
Random(0).shuffle(KINDS)


@dataclass
class Job:
    """An operation, what it starts from, and how it passes and ends undisturbed."""

    operation: str
    arguments: dict[str, Any]
    template: Path | None
    seconds: float = 0.0
    passed: dict[str, int] = field(default_factory=dict)
    died_at: set[str] = field(default_factory=set)
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
    paths = draw_images(root / "pictures", 18)
    more = [str(path) for path in draw_images(root / "more", 5, seed=1)]
    book = str(root / "book.safetensors")
    server.ask("proof_world:write_codebook", path=book)

    plain = root / "plain"
    server.ask("proof_killing:killable", folder=str(plain), operation="ingest",
               pictures=pictures, tokens="file")  # fmt: skip
    holed = root / "holed"
    server.ask("proof_killing:with_holes", folder=str(holed), pictures=pictures, more=more)
    damaged = copy_folder(plain, root / "damaged")
    server.ask("proof_killing:damaged", folder=str(damaged))
    assert server.ask("proof_world:state", folder=str(plain))["count"] == len(paths)
    ids = server.ask("proof_killing:in_two_files", folder=str(plain))
    jobs = {
        "ingest-file": Job("ingest", {"pictures": pictures, "tokens": "file"}, None),
        "ingest-payload": Job("ingest", {"pictures": pictures, "tokens": "payload"}, None),
        "compact": Job("compact", {}, holed),
        "transcode-int8": Job("transcode", {"codec": "int8"}, plain),
        "transcode-pq16": Job("transcode", {"codec": book}, plain),
        "repair": Job("repair", {}, damaged),
        "delete": Job("delete", {"ids": ids}, plain),
    }
    for kind, job in jobs.items():
        folder = root / f"undisturbed-{kind}"
        folder.mkdir()
        started = time.perf_counter()
        ended = job.run(server, job.folder(folder))
        job.seconds = time.perf_counter() - started
        assert ended.status == 0, ended.error
        job.passed = ended.result
        job.expected = server.ask("proof_world:state", folder=str(folder / "c"))
        assert job.expected["findings"] == []
    for kind in ("compact", "repair"):
        assert jobs[kind].expected["rankings"] == jobs["ingest-file"].expected["rankings"]
    return jobs


def chosen_kill(job: Job, random: Random, turn: int, again: bool) -> dict[str, Any]:
    """Choose where to die; each point has its turn, and some deaths are by the clock alone."""
    if again and random.random() < 0.4:
        return {"after": random.uniform(0.0, job.seconds)}
    # In an order of its own, as neighbours in the alphabet are neighbours in time.
    names = Random(job.operation).sample(sorted(job.passed), len(job.passed))
    name = random.choice(names) if again else names[turn % len(names)]
    number = 1 if again else random.randint(1, job.passed[name])
    power = random.choice([None, "ours", "engine", "both"])
    return {
        "point": name, "number": number, "delay": random.uniform(0.0, 0.02), "power": power,
    }  # fmt: skip


CASES = [
    pytest.param(seed, marks=[pytest.mark.slow] if seed >= DEFAULT else [], id=f"{seed}-{kind}")
    for seed, kind in enumerate(KINDS)
]


@pytest.mark.parametrize("seed", CASES)
def test_killed_and_run_again(
    server: Server, jobs: dict[str, Job], scratch: Path, tally: Counter[str], seed: int
) -> None:
    kind = KINDS[seed]
    job, random = jobs[kind], Random(seed)
    folder = job.folder(scratch)
    if job.template is None and random.random() < 0.7:  # else it may die while it makes one
        server.ask("proof_killing:created", folder=folder, tokens=job.arguments["tokens"])
    kills = []
    for attempt in range(random.choice([1, 1, 1, 2, 2, 4])):
        kill = chosen_kill(job, random, KINDS[:seed].count(kind), again=attempt > 0)
        ended = job.run(server, folder, kill)
        kills.append((kill, ended.status))
        assert ended.killed or ended.status == 0, f"{kills}\n{ended.error}"
        tally[f"kills during {kind}"] += ended.killed
        tally["kills, in all"] += ended.killed
        tally["of them, with what was not on the disk lost"] += bool(
            ended.killed and kill.get("power") and "during" not in kill["point"]
        )
        if ended.killed and "point" in kill:
            job.died_at.add(kill["point"])
        tally["points died at"] = sum(len(each.died_at) for each in jobs.values())
        tally["points there are"] = sum(len(each.passed) for each in jobs.values())
        if kind != "repair" and random.random() < 0.5:
            # Whatever is there by now has its tokens, and a search at this moment is right.
            found = server.ask("proof_killing:found_now", folder=folder)
            assert set(found["kinds"]) <= {"other codec"}, kills
            assert found["count"] == found["searched"], kills
    ended = job.run(server, folder)
    assert ended.status == 0, f"{kills}\n{ended.error}"
    assert server.ask("proof_world:state", folder=folder) == job.expected, kills
    if kind != "ingest-payload":
        tidied = server.ask("proof_killing:compacted_state", folder=folder)
        assert sum(tidied.pop("used")) == job.expected["count"], kills
        assert tidied.pop("strays") == [], kills
        assert tidied == job.expected, kills


def test_an_export_killed_and_run_again(
    server: Server, jobs: dict[str, Job], scratch: Path, tally: Counter[str]
) -> None:
    """Killed at each point of it: the next run writes the archive, or says that it is whole."""
    folder = str(copy_folder(jobs["transcode-int8"].template, scratch / "c"))
    job = Job("export", {"archive": str(scratch / "whole.tar")}, None)
    ended = job.run(server, folder)
    assert ended.status == 0, ended.error
    whole = (scratch / "whole.tar").read_bytes()
    refused = 0
    for place, point in enumerate(sorted(ended.result)):
        archive = scratch / f"{place}" / "a.tar"
        archive.parent.mkdir()
        job.arguments["archive"] = str(archive)
        kill = {"point": point, "number": 1, "delay": 0.0, "power": None}
        ended = job.run(server, folder, kill)
        assert ended.killed or "during" in point, point
        tally["kills during export"] += ended.killed
        left = [path.name for path in archive.parent.iterdir()]
        said = server.ask("proof_killing:export_again", folder=folder, archive=str(archive))
        if said:
            assert "a whole archive" in said, point
            assert left == ["a.tar"], point
            refused += 1
        assert archive.read_bytes() == whole, point
        assert [path.name for path in archive.parent.iterdir()] == ["a.tar"], point
    assert tally["kills during export"] > 5
    assert refused  # killed while the collection was closed
