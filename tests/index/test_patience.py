"""Waiting for a server that is away, from every thread of a job."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
from index_engines import FAST, make_points, unit_vectors
from index_stand_in import StandIn
from line import Line
from tqdm import tqdm

from edje_qdrant.errors import EngineUnavailableError, RateLimitedError
from edje_qdrant.index import VectorIndex, create_on_server, open_on_server


@pytest.fixture
def index(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[VectorIndex]:
    """An index whose failures are told of at once, and whose pauses are short."""
    monkeypatch.setattr("edje_qdrant.index.qdrant.patience._TOLD_AFTER", 0.0)
    monkeypatch.setattr("edje_qdrant.index.qdrant.connection._LONGEST_PAUSE", 0.02)
    index = create_on_server(stand_in.url, "images", 8, {}, FAST)
    index.upsert(make_points(unit_vectors(5)))
    yield index
    index.close()


def fail(stand_in: StandIn, times: int, status: int = 503) -> None:
    stand_in.failures.extend([(status, {})] * times)


@pytest.mark.parametrize("status", [429, 503])
def test_a_job_goes_on_when_the_server_is_back(
    stand_in: StandIn, index: VectorIndex, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    fail(stand_in, 4 * FAST.retries, status)
    with pytest.raises(EngineUnavailableError):
        index.count()
    capsys.readouterr()
    with index.patient(60):
        assert index.count() == 5
    waiting, going_on = capsys.readouterr().err.splitlines()
    what = "takes no more requests for now" if status == 429 else "does not answer"
    assert waiting.startswith(f"Qdrant at {stand_in.url} {what} (")
    assert "60 s at most" in waiting
    assert going_on.endswith("going on")
    fail(stand_in, FAST.retries + 1)
    with pytest.raises(EngineUnavailableError):  # after the job
        index.count()
    assert not capsys.readouterr().err


def test_it_ends_when_the_time_is_over(
    stand_in: StandIn, index: VectorIndex, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.answers_left = 0
    with index.patient(0.3), pytest.raises(EngineUnavailableError, match="no answer from Qdrant"):
        index.count()
    assert len(capsys.readouterr().err.splitlines()) == 1
    with index.patient(0), pytest.raises(EngineUnavailableError, match="after 4 tries"):
        index.count()


def test_a_job_inside_a_job_waits_as_long_as_the_outer_one(
    stand_in: StandIn, index: VectorIndex
) -> None:
    stand_in.answers_left = 0
    with index.patient(0.2), index.patient(3600), pytest.raises(EngineUnavailableError):
        index.count()


def test_every_thread_waits_and_one_line_says_so(
    stand_in: StandIn, index: VectorIndex, capsys: pytest.CaptureFixture[str]
) -> None:
    """The threads of a pool have a context of their own."""
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: index.count(), range(4)))  # they are there before the job
        stand_in.answers_left = 0
        threading.Timer(0.5, setattr, (stand_in, "answers_left", None)).start()
        with index.patient(60), tqdm(total=4, desc="working") as bar:
            for count in threads.map(lambda _: index.count(), range(4)):
                assert count == 5
                bar.update()
    err = capsys.readouterr().err
    assert err.count("waiting for it") == 1
    assert err.count("going on") == 1
    for line in err.replace("\r", "\n").splitlines():  # no line is beside the bar
        assert not ("working" in line and "Qdrant" in line)


def test_a_search_does_not_wait_beside_a_job(stand_in: StandIn, index: VectorIndex) -> None:
    stand_in.answers_left = 0
    with index.patient(60), index.limit(), pytest.raises(EngineUnavailableError):
        index.count()


@pytest.mark.qdrant_server
@pytest.mark.parametrize("engine", ["server", "server_grpc"], indirect=True)
def test_a_real_server_behind_a_line_that_is_cut(
    engine: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line is a proxy of this process: it is closed, and open again a second later."""
    monkeypatch.setattr("edje_qdrant.index.qdrant.patience._TOLD_AFTER", 0.0)
    asked = engine.create("images", 8, {})._backend
    given = {**asked._connection._settings()}
    over_grpc = bool(given["prefer_grpc"])
    target = urlsplit(asked._connection.address)
    port = given["grpc_port"] if over_grpc else target.port
    with Line(str(target.hostname), int(port)) as line:
        options = dataclasses.replace(FAST, prefer_grpc=over_grpc, timeout=2, retries=1)
        address = f"http://127.0.0.1:{line.port}"
        if over_grpc:
            options = dataclasses.replace(options, grpc_port=line.port)
        index = open_on_server(address, asked._collection, options)
        line.cut()
        with pytest.raises(EngineUnavailableError), index.limit():
            index.count()
        threading.Timer(1, line.mend).start()
        with index.patient(60):
            index.upsert(make_points(unit_vectors(5)))
            assert index.count() == 5
        index.close()
    assert capsys.readouterr().err.count("going on") == 1


def test_a_line_that_is_cut(
    stand_in: StandIn, index: VectorIndex, capsys: pytest.CaptureFixture[str]
) -> None:
    with Line("127.0.0.1", int(stand_in.url.rpartition(":")[2])) as line:
        through = open_on_server(f"http://127.0.0.1:{line.port}", "images", FAST)
        line.cut()
        with pytest.raises(EngineUnavailableError), through.limit():
            through.count()
        threading.Timer(0.3, line.mend).start()
        with through.patient(60):
            assert through.count() == 5
        through.close()
    assert capsys.readouterr().err.count("going on") == 1


def test_a_rate_limit_longer_than_the_wait_is_an_error_at_once(
    stand_in: StandIn, index: VectorIndex
) -> None:
    stand_in.failures.extend([(429, {"Retry-After": "600"})] * 9)
    stand_in.seen.clear()
    with index.patient(5), pytest.raises(RateLimitedError, match="try again in 600 s"):
        index.count()
    assert len(stand_in.seen) == 1
