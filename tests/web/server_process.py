"""A stand-in for a Qdrant server in a process of its own, which can be killed and paused."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from service_process import free_port

INDEX = Path(__file__).parent.parent / "index"


class ServerProcess:
    """Run the stand-in, with its data in a folder; `start` starts it again on the same port.

    Args:
        folder: Keeps the data.
        grpc: Answer over gRPC, too, at `grpc_port`.
    """

    def __init__(self, folder: Path, *, grpc: bool = False) -> None:
        self.folder, self.port = folder, free_port()
        self.grpc_port = free_port() if grpc else None
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        script, ports = "index_stand_in.py", [self.port]
        if self.grpc_port is not None:
            script, ports = "grpc_stand_in.py", [self.grpc_port, self.port]
        command = [sys.executable, INDEX / script, *ports, self.folder]
        self.process = subprocess.Popen([str(word) for word in command])
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with suppress(OSError), socket.create_connection(("127.0.0.1", ports[-1]), timeout=5):
                return
            assert self.process.poll() is None, "the stand-in did not start"
            time.sleep(0.02)
        raise AssertionError("the stand-in did not start in time")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    def pause(self) -> None:
        """Let it accept connections and answer none."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self.kill()
