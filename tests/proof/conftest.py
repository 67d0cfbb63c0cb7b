"""What the proofs share: a server that forks, images, and a tally for the last line."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import proof_server
import pytest

TALLY: Counter[str] = Counter()


@pytest.fixture(scope="session")
def server() -> Iterator[proof_server.Server]:
    if sys.platform != "linux":
        pytest.skip("forks, kills and looks at open files as Linux does")
    with proof_server.started() as started:
        yield started


@pytest.fixture(scope="session")
def tally() -> Counter[str]:
    """What was done, for the summary in the end."""
    return TALLY


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory where there is room: thousands of `fsync` take their time on a disk."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1 << 30:
        with tempfile.TemporaryDirectory(prefix="edje-proof-", dir=memory) as folder:
            yield Path(folder)
    else:
        yield tmp_path_factory.mktemp("proof")


@pytest.fixture
def scratch(base: Path) -> Iterator[Path]:
    """A folder that is gone after the test."""
    folder = Path(tempfile.mkdtemp(dir=base))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def root(base: Path) -> Path:
    """A folder for what a module's tests start from."""
    return Path(tempfile.mkdtemp(dir=base))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TALLY:
        terminalreporter.section("proof")
        for what, count in sorted(TALLY.items()):
            terminalreporter.line(f"{what}: {count}")
