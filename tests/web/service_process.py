"""A service in a process of its own, started by its command."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

# What `python` runs first in every process of the service: images of 101 pixels across never end.
SITE = """
import sys
if any("decoder_worker" in argument for argument in sys.orig_argv):
    from decoder_finishes import Fragile
    from edje_qdrant.images import resize
    call = resize.SiglipResize.__call__
    resize.SiglipResize.__call__ = lambda self, image: Fragile(lambda i: call(self, i))(image)
"""


def hanging_decoders(folder: Path) -> dict[str, str]:
    """Return the environment of a service whose decoders never end an image 101 pixels wide."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITE)
    path = [
        folder,
        Path(__file__).parent.parent,
        *os.environ.get("PYTHONPATH", "").split(os.pathsep),
    ]
    return {"PYTHONPATH": os.pathsep.join(str(each) for each in path if str(each))}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class ServiceProcess:
    """Run `edje-qdrant serve`; its log's lines are in `lines`."""

    def __init__(self, *args: Any, environment: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "edje_qdrant", "serve", *map(str, args)]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port)],
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as errors:
            self.lines.extend(errors)

    def wait(self, seconds: float = 120) -> None:
        """Wait until it can be asked."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            time.sleep(0.1)
        self.end()
        raise AssertionError("the service did not start: " + "".join(self.lines))

    def end(self) -> int:
        """Ask it to end, and return its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        status = self.process.wait(60)
        self._reader.join(60)
        return status

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines if line.startswith("{")]


def folder_of_scenes(folder: Path, count: int) -> list[str]:
    """Draw scenes and ingest them with the bundled model; return the captions, one an image."""
    from edje_qdrant.collection.collection import ImageCollection
    from edje_qdrant.demo.annotated import write_scenes
    from edje_qdrant.ingest.ingest import ingest_images
    from edje_qdrant.model import EDJEModel

    scenes = write_scenes(folder / "scenes", count=count, progress=False)
    model = EDJEModel.from_pretrained("demo")
    with ImageCollection.create(folder / "index", "images", model.contract()) as collection:
        ingest_images(folder / "scenes" / "pictures", collection, model, progress=False)
    return [json.loads(line)["caption"] for line in scenes.read_text().splitlines()]
