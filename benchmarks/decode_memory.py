"""Measure the peak memory of decoding very large images, at ingest and in the service.

    python benchmarks/decode_memory.py [--side 13000] [--uploads 8] [--out results.json]

Two PNG files of `--side` x `--side` pixels, a few hundred kB each, are ingested with two decoder
processes and the bundled model: RGB, RGBA and grey of 16 bits in turn. `serve`: `--uploads` PNG
files of 7,000 x 7,000 pixels are sent at once to `/v1/search/image`. Memory is the sum of the
resident sets of the process and its child processes, sampled every 20 ms; pages that they share
count several times. `idle_mb` is the service's before the first upload. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

INGEST = """
import sys
from edje_qdrant import EDJEModel, ImageCollection, ingest_images

model = EDJEModel.from_pretrained("demo", device="cpu")
with ImageCollection.create(sys.argv[2], "images", model.contract()) as collection:
    print(ingest_images(sys.argv[1], collection, model, workers=2, progress=False))
"""


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--side", type=int, default=13_000)
    parser.add_argument("--uploads", type=int, default=8)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found: dict[str, Any] = {
            kind: _ingest(folder, kind, options.side) for kind in ("rgb", "rgba", "grey16")
        }
        found["serve"] = _serve(folder, options.uploads)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found))


def _ingest(folder: Path, kind: str, side: int) -> dict[str, Any]:
    images = folder / kind
    images.mkdir()
    for shade in (10, 200):
        (images / f"{shade}.png").write_bytes(png(kind, side, shade))
    command = [sys.executable, "-c", INGEST, str(images), str(folder / f"index-{kind}")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak = Peak(process.pid)
        assert process.stdout is not None
        report = process.stdout.read().strip()
    return {"peak_mb": peak.stop(), "report": report.replace(str(folder), "")}


def _serve(folder: Path, uploads: int) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "edje_qdrant", "serve", "--port", str(port)]
    command += ["--index", str(folder / "index-rgb")]
    content = png("rgb", 7000, 90)
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            while not _is_ready(url):
                time.sleep(0.2)
            idle = tree_mb(process.pid)
            peak = Peak(process.pid)

            def send(_: int) -> int:
                answer = httpx.post(
                    f"{url}/v1/search/image", files={"file": ("a.png", content)}, timeout=120
                )
                return answer.status_code

            with ThreadPoolExecutor(uploads) as threads:
                statuses = [*threads.map(send, range(uploads))]
            return {"idle_mb": idle, "peak_mb": peak.stop(), "statuses": statuses}
        finally:
            process.terminate()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


class Peak:
    """Sample the memory of a process and its children until it is stopped."""

    def __init__(self, process: int) -> None:
        self._process, self._peak, self._stopped = process, 0, threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def _sample(self) -> None:
        while not self._stopped.wait(0.02):
            self._peak = max(self._peak, tree_mb(self._process))

    def stop(self) -> int:
        """Return the greatest sum, in MB."""
        self._stopped.set()
        self._thread.join()
        return self._peak


def tree_mb(process: int) -> int:
    """Return the resident MB of a process and all below it."""
    total, waiting = 0, [process]
    while waiting:
        number = waiting.pop()
        try:
            place = Path(f"/proc/{number}")
            pages = int((place / "statm").read_text().split()[1])
            for task in (place / "task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
        total += pages * os.sysconf("SC_PAGE_SIZE")
    return total // 1_000_000


def png(kind: str, side: int, shade: int) -> bytes:
    """Return a square PNG of one colour: `rgb`, `rgba` or `grey16`."""
    depth, colour, samples = {"rgb": (8, 2, 3), "rgba": (8, 6, 4), "grey16": (16, 0, 2)}[kind]

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    head = 2 * side.to_bytes(4, "big") + bytes([depth, colour, 0, 0, 0])
    row, packed = b"\0" + bytes([shade]) * (samples * side), zlib.compressobj()
    data = b"".join(packed.compress(row) for _ in range(side)) + packed.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


if __name__ == "__main__":
    main()
