"""Killed at any moment of a migration, a collection is searched with one of the models alone."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from proof_server import Ended, Server
from proof_world import copy_folder, draw_images

sys.path.insert(0, str(Path(__file__).parent.parent / "index"))

from index_stand_in import StandIn

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ContractMismatchError, StoreError
from edje_qdrant.types import Candidate

OLD, NEW = 0, 1
# Kind of run -> what has been done before it.
STEPS = {"whole": [], "back before": ["encode"], "back after": ["encode", "switch"]}
# Of so many cases in folders, how many are of which kind; the first one is run by default.
KINDS = ["whole", "back after", *(["whole", "whole", "back before", "back after"] * 40)]
DEFAULT = 1


@dataclass
class Job:
    """A run of one kind in a folder, what it starts from, and how it ends undisturbed."""

    operation: str
    template: Path
    seconds: float = 0.0
    passed: dict[str, int] = field(default_factory=dict)
    expected: dict[str, Any] = field(default_factory=dict)


def run(server: Server, operation: str, location: str, kill: dict[str, Any] | None = None) -> Ended:
    after = kill.get("after") if kill else None
    return server.run(
        "proof_migrating:killable", kill_after=after, location=location, operation=operation,
        kill=None if after is not None else kill,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pictures(root: Path) -> str:
    draw_images(root / "pictures", 7)
    return str(root / "pictures")


@pytest.fixture(scope="module")
def jobs(server: Server, root: Path, pictures: str) -> Jobs:
    return Jobs(server, root, pictures)


class Jobs:
    """Every kind of run, done once without a kill when it is first asked for.

    Attributes:
        rankings: What searches find with each model.
    """

    def __init__(self, server: Server, root: Path, pictures: str) -> None:
        self._server, self._root, self._jobs = server, root, dict[str, Job]()
        self._filled = root / "filled"
        server.ask("proof_migrating:filled", location=str(self._filled), pictures=pictures)
        self.rankings = {OLD: self._now(self._filled)["rankings"]}

    def _now(self, folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = self._server.ask("proof_migrating:now", location=str(folder))
        assert found["findings"] == []
        return found

    def of(self, kind: str) -> Job:
        if kind not in self._jobs:
            template = copy_folder(self._filled, self._root / f"{kind}-template")
            self._server.ask("proof_migrating:prepared", location=str(template), steps=STEPS[kind])
            job = Job(kind.split()[0], template)
            folder = copy_folder(template, self._root / f"{kind}-undisturbed")
            started = time.perf_counter()
            ended = run(self._server, job.operation, str(folder))
            job.seconds = time.perf_counter() - started
            assert ended.status == 0, ended.error
            job.passed, job.expected = ended.result, self._now(folder)
            assert job.expected["status"] is None
            assert job.expected["model"] == (NEW if kind == "whole" else OLD)
            self.rankings[job.expected["model"]] = job.expected["rankings"]
            self._jobs[kind] = job
        return self._jobs[kind]


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(seed, marks=[pytest.mark.slow] if seed >= DEFAULT else [], id=f"{seed}-{kind}")
        for seed, kind in enumerate(KINDS)
    ],
)
def test_killed_and_run_again(
    server: Server, jobs: Jobs, scratch: Path, tally: Counter[str], seed: int
) -> None:
    kind, random = KINDS[seed], Random(seed)
    jobs.of("whole")  # for the rankings of both models
    job = jobs.of(kind)
    folder = str(copy_folder(job.template, scratch / "c"))
    kills = []
    # In an order of its own, as neighbours in the alphabet are neighbours in time.
    names = Random(kind).sample(sorted(job.passed), len(job.passed))
    for attempt in range(random.choice([1, 1, 2, 3])):
        if attempt and random.random() < 0.5:
            kill: dict[str, Any] = {"after": random.uniform(0.0, job.seconds)}
        else:
            name = names[(KINDS[:seed].count(kind) + 7 * attempt) % len(names)]
            kill = {
                "point": name,
                "number": random.randint(1, job.passed[name]),
                "delay": random.uniform(0.0, 0.02),
                "power": None,
            }
        ended = run(server, job.operation, folder, kill)
        kills.append((kill, ended.status))
        assert ended.killed or ended.status == 0, f"{kills}\n{ended.error}"
        tally[f"kills during migrations, {kind}"] += ended.killed
        found = server.ask("proof_migrating:now", location=folder)
        assert found["rankings"] == jobs.rankings[found["model"]], kills
        assert found["findings"] == [], kills
    ended = run(server, job.operation, folder)
    assert ended.status == 0, f"{kills}\n{ended.error}"
    assert server.ask("proof_migrating:now", location=folder) == job.expected, kills


class Watcher:
    """Search a server's collection all the while, with the models that it names.

    Attributes:
        problems: What must not be: a ranking of fewer images, or of both models.
        found: How often each model's ranking was found, and each error.
    """

    def __init__(self, url: str, images: int) -> None:
        self._url, self._images = url, images
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self.problems: list[str] = []
        self.found: Counter[str] = Counter()

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        from proof_world import model

        opened = ImageCollection.open(self._url, "images")
        seeds = {model(seed).contract().model_key: seed for seed in (OLD, NEW)}
        try:
            while not self._stop.is_set():
                seed = seeds[opened.contract.model_key]
                try:
                    (hits,) = opened.nearest(model(seed).encode_texts(["blue"]), 100)
                    self._check(seed, hits)
                    opened.tokens(hits)
                except ContractMismatchError:
                    self.found["contract errors"] += 1
                    opened.close()
                    opened = ImageCollection.open(self._url, "images")
                except StoreError as error:
                    # A rollback removes the side that is searched, and a drop another one.
                    self.found[type(error).__name__] += 1
                    opened.close()
                    opened = ImageCollection.open(self._url, "images")
        finally:
            opened.close()

    def _check(self, seed: int, hits: list[Candidate]) -> None:
        from proof_world import model

        key = model(seed).contract().model_key
        written = {hit.payload["_edje"]["contract"] for hit in hits}
        if len(hits) != self._images or written != {key}:
            self.problems.append(f"{len(hits)} hits of {written}, searched with {key}")
        self.found[f"model {seed}"] += 1


SERVER_CASES = [pytest.param(seed, marks=pytest.mark.slow, id=str(seed)) for seed in range(24)]


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with StandIn() as started:
        yield started


@pytest.mark.parametrize("seed", SERVER_CASES)
def test_killed_on_a_server_while_others_search(
    server: Server, pictures: str, stand_in: StandIn, tally: Counter[str], seed: int
) -> None:
    random, url = Random(seed), stand_in.url
    server.ask("proof_migrating:filled", location=url, pictures=pictures)
    operations = ["whole", "whole", "whole"] if seed % 3 else ["encode", "switch", "back", "whole"]
    names = [
        "engine set_metadata: before", "engine set_metadata: after", "engine sign: before",
        "engine sign: after", "engine insert: half", "engine insert: after",
        "engine remove: before", "engine remove: after", "engine delete: half",
        "engine flush: after",
    ]  # fmt: skip
    kills = []
    with Watcher(url, 7) as watcher:
        for number, operation in enumerate(operations):
            kill = {
                "point": names[(seed + number) % len(names)],
                "number": random.randint(1, 4),
                "delay": 0.0,
                "power": None,
            }
            ended = run(server, operation, url, kill)
            kills.append((operation, kill, ended.status))
            assert ended.killed or ended.status == 0 or "edje_qdrant.errors" in str(ended.error), (
                f"{kills}\n{ended.error}"
            )
            tally["kills during migrations on a server"] += ended.killed
        ended = run(server, "whole", url)
        if ended.status:  # a rollback was interrupted
            assert run(server, "back", url).status == 0
            ended = run(server, "whole", url)
        assert ended.status == 0, f"{kills}\n{ended.error}"
        deadline = time.monotonic() + 20
        while not watcher.found[f"model {NEW}"] and time.monotonic() < deadline:
            time.sleep(0.01)
    assert watcher.problems == [], kills
    assert watcher.found[f"model {OLD}"], kills
    assert watcher.found[f"model {NEW}"], kills
    found = server.ask("proof_migrating:now", location=url)
    assert (found["model"], found["status"], found["findings"]) == (NEW, None, [])
    assert len(stand_in.client.get_collections().collections) == 2
