"""Start a process that has everything loaded, and fork a child of it for each task.

Loading torch takes seconds, and what is to be killed has to be a process of its own. The server
opens no collection itself: locks, maps and threads do not survive a fork.

Run as a program it reads requests, a line of JSON each, and answers each with a line.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).parent
LIMIT = 200.0


@dataclass
class Ended:
    """How a child ended: `status` 0, minus a signal, or 1 with the traceback as `error`.

    A child that runs for longer than `LIMIT` ends by SIGTERM; `error` has its threads' stacks and
    its CPU time, which tells a child that waits for ever from one on a busy machine.
    """

    status: int
    result: Any = None
    error: str | None = None

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL


class Server:
    """Talk to the server process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run_all(self, *tasks: dict[str, Any]) -> list[Ended]:
        """Run tasks side by side, each `{"task": "module:function", "arguments": {...}}`.

        With `"kill_after": seconds` the child is killed then, if it has not ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(tasks) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the server is gone"
        return [Ended(**ended) for ended in json.loads(answer)]

    def run(self, task: str, *, kill_after: float | None = None, **arguments: Any) -> Ended:
        """Run one task, however it ends."""
        (ended,) = self.run_all({"task": task, "arguments": arguments, "kill_after": kill_after})
        return ended

    def ask(self, task: str, **arguments: Any) -> Any:
        """Run one task that must succeed; return its result."""
        ended = self.run(task, **arguments)
        assert ended.status == 0, f"{task} ended with {ended.status}\n{ended.error}"
        return ended.result


@contextmanager
def started() -> Iterator[Server]:
    """Start the server, and stop it in the end."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **one},
    )
    with process:
        yield Server(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == 0


@dataclass
class _Child:
    pid: int
    pipe: int
    kill_at: float | None
    until: float
    stacks: IO[bytes]  # what SIGTERM makes the child write
    received: bytes = b""
    ended: dict[str, Any] | None = field(default=None)

    def take(self, data: bytes) -> None:
        """Note what the child says: lines `kill SECONDS`, and a last one of JSON."""
        self.received += data
        while self.received.startswith(b"kill ") and b"\n" in self.received:
            line, _, self.received = self.received.partition(b"\n")
            self.kill_at = time.monotonic() + float(line[5:])

    def finish(self) -> None:
        os.close(self.pipe)
        _, status, used = os.wait4(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        said = {}
        if code in (0, 1):
            said = json.loads(self.received)
        elif code == -signal.SIGTERM:
            self.stacks.seek(0)
            seconds = used.ru_utime + used.ru_stime
            stacks = self.stacks.read().decode()
            said = {"error": f"it ran for over {LIMIT:.0f} s ({seconds:.1f} s of CPU)\n{stacks}"}
        self.stacks.close()
        self.ended = {"status": code, **said}


def _fork(task: dict[str, Any]) -> _Child:
    read, write = os.pipe()
    stacks = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the child has ended
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(write)
        now = time.monotonic()
        after = task.get("kill_after")
        return _Child(pid, read, None if after is None else now + after, now + LIMIT, stacks)
    status = 1
    try:
        os.close(read)
        faulthandler.register(signal.SIGTERM, stacks, chain=True)
        try:
            module, _, function = task["task"].partition(":")
            said = {
                "result": getattr(sys.modules[module], function)(
                    pipe=write, **task.get("arguments", {})
                )
            }
            status = 0
        except BaseException:
            said = {"error": traceback.format_exc()}
        data = json.dumps(said).encode()
        while data:
            data = data[os.write(write, data) :]
    finally:
        os._exit(status)


def _wait(children: list[_Child]) -> None:
    while running := [child for child in children if child.ended is None]:
        now = time.monotonic()
        for child in running:
            if child.kill_at is not None and child.kill_at <= now:
                os.kill(child.pid, signal.SIGKILL)
                child.kill_at = None
            elif child.until <= now:
                os.kill(child.pid, signal.SIGTERM)
                child.until = now + LIMIT
        times = [t for child in running for t in (child.kill_at, child.until) if t is not None]
        ready, _, _ = select.select([c.pipe for c in running], [], [], max(0, min(times) - now))
        for child in running:
            if child.pipe in ready:
                data = os.read(child.pipe, 1 << 16)
                child.take(data) if data else child.finish()


def _serve() -> None:
    import torch

    torch.set_num_threads(1)  # a pool of threads would not survive a fork
    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "index")]
    for name in (
        "proof_breaking", "proof_faulting", "proof_killing", "proof_migrating", "proof_reading",
    ):  # fmt: skip
        importlib.import_module(name)
    import proof_world

    proof_world.shrink()
    proof_world.model()
    proof_world.model(1)
    gc.collect()
    gc.freeze()  # or each child would look through all of it, and copy it by doing so
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a child prints must not get between the answers
    for line in sys.stdin:
        children = [_fork(task) for task in json.loads(line)]
        _wait(children)
        print(json.dumps([child.ended for child in children]), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
