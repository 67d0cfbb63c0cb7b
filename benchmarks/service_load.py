"""Measure latency, errors and memory of the service under load, while images are added.

    python benchmarks/service_load.py [--seconds 60] [--clients 16] [--images 300]
        [--candidates 20] [--out docs/results/service_load.json]

The service runs in a separate process with the bundled model and drawn scenes. Each client searches
for captions of the scenes without a pause, and requests the next page and a thumbnail after one
search in ten; one more client uploads a new scene every second.

The first hit of every response is compared with that of the same search before the load. Uploaded
scenes can become first hits, so a change counts only if the new hit is one of the initial scenes.

Memory is the resident memory (VmRSS) of the service's process, measured eleven times at equal
intervals: caches that fill up show in the first values, a leak in all of them.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from demo_world import conditions

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.demo.annotated import write_scenes
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.scenes import draw_scenes
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.model import EDJEModel

STEPS = 10


class Load:
    """Run clients, and record their latencies, errors and changed responses.

    Args:
        url: URL of the service.
        captions: Texts to search for.
        candidates: Number of candidates of each search.
    """

    def __init__(self, url: str, captions: list[str], candidates: int) -> None:
        self.url, self.captions, self.candidates = url, captions, candidates
        self.seconds: dict[str, list[float]] = {}
        self.errors: Counter[str] = Counter()
        self.changed = 0
        self.right: dict[str, str] = {}
        self.ended = threading.Event()
        self._lock = threading.Lock()

    def learn(self) -> None:
        """Search for every caption once without load, and record the first hits."""
        with httpx.Client(base_url=self.url, timeout=60) as client:
            for caption in self.captions:
                hits = self._search(client, caption).json()["hits"]
                self.right[caption] = hits[0]["image_id"]
        self.seconds.clear()
        self.errors.clear()

    def ask(self, seed: int) -> None:
        """Run one client that searches until the end of the load."""
        chance = random.Random(seed)
        known = {*self.right.values()}
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while not self.ended.is_set():
                caption = chance.choice(self.captions)
                answer = self._search(client, caption)
                if answer.status_code != 200:
                    continue
                found = answer.json()
                first = found["hits"][0]["image_id"]
                if first != self.right[caption] and first in known:
                    with self._lock:
                        self.changed += 1
                if chance.random() < 0.1:
                    body = {"cursor": found["cursor"], "top_k": 5}
                    self._timed(client, "page", "POST", "/v1/search/next", json=body)
                    self._timed(client, "thumbnail", "GET", f"/v1/images/{first}/thumbnail")

    def add(self, seed: int) -> None:
        """Upload a new scene every second until the end of the load."""
        with httpx.Client(base_url=self.url, timeout=60) as client:
            for scene in draw_scenes("test", seed, 100_000):
                if self.ended.is_set():
                    return
                buffer = io.BytesIO()
                draw(scene).save(buffer, "PNG")
                files = {"files": ("scene.png", buffer.getvalue())}
                self._timed(client, "ingest", "POST", "/v1/ingest", files=files)
                self.ended.wait(1)

    def _search(self, client: httpx.Client, caption: str) -> httpx.Response:
        body = {"text": caption, "top_k": 10, "num_candidates": self.candidates}
        return self._timed(client, "search", "POST", "/v1/search", json=body)

    def _timed(
        self, client: httpx.Client, what: str, method: str, path: str, **options: Any
    ) -> httpx.Response:
        began = time.perf_counter()
        try:
            answer = client.request(method, path, **options)
        except httpx.TransportError as error:
            answer = httpx.Response(599, text=type(error).__name__)
        with self._lock:
            self.seconds.setdefault(what, []).append(time.perf_counter() - began)
            if answer.status_code != 200:
                self.errors[f"{what} {answer.status_code}"] += 1
        return answer


def main() -> None:
    """Measure, and print and write the results."""
    options = _options()
    busy = conditions()["load_average"]  # before the benchmark adds its own load
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        captions = _prepare(folder, options.images)
        process, url = _start(folder)
        try:
            load = Load(url, captions, options.candidates)
            load.learn()
            rows, memory, took = _run(load, process.pid, options)
            metrics = httpx.get(f"{url}/metrics", timeout=60).text
        finally:
            process.terminate()
            status = process.wait(60)
    report = {
        "clients": options.clients,
        "seconds": round(took, 1),
        "pictures": options.images,
        "candidates": options.candidates,
        "requests": rows,
        "errors": dict(load.errors),
        "changed_answers": load.changed,
        "searches_per_second": round(rows["search"]["count"] / took, 2),
        "searches_per_batch": _mean_batch(metrics, len(captions)),
        "memory_mb": memory,
        "exit_status": status,
        **conditions(),
        "load_average_before": busy,
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


def _run(
    load: Load, pid: int, options: argparse.Namespace
) -> tuple[dict[str, Any], list[float], float]:
    threads = [threading.Thread(target=load.ask, args=(n,)) for n in range(options.clients)]
    threads.append(threading.Thread(target=load.add, args=(1000,)))
    memory = [_resident(pid)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for step in range(1, STEPS + 1):
        time.sleep(max(0.0, began + step * options.seconds / STEPS - time.perf_counter()))
        memory.append(_resident(pid))
    load.ended.set()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    rows = {what: _summary(seconds) for what, seconds in load.seconds.items()}
    return rows, memory, took


def _summary(seconds: list[float]) -> dict[str, float]:
    p50, p99 = 1000 * np.percentile(seconds, [50, 99])
    return {"count": len(seconds), "p50_ms": round(float(p50), 1), "p99_ms": round(float(p99), 1)}


def _prepare(folder: Path, count: int) -> list[str]:
    scenes = write_scenes(folder / "scenes", count=count, progress=False)
    model = EDJEModel.from_pretrained("demo")
    with ImageCollection.create(folder / "index", "images", model.contract()) as collection:
        ingest_images(folder / "scenes" / "pictures", collection, model, progress=False)
    captions = [json.loads(line)["caption"] for line in scenes.read_text().splitlines()]
    return captions[:20]


def _start(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    process = subprocess.Popen(
        [
            sys.executable, "-m", "edje_qdrant", "serve", "--index", str(folder / "index"),
            "--images", str(folder / "scenes"), "--ingest", "--port", str(port),
        ],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    while process.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz").status_code == 200:
                return process, url
        time.sleep(0.2)
    raise SystemExit(f"the service did not start (exit status {process.returncode})")


def _resident(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


def _mean_batch(metrics: str, alone: int) -> float:
    """Return the mean number of searches in a batch, without the searches before the load."""
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    searches = float(values["edje_batch_searches_sum"]) - alone
    return round(searches / (float(values["edje_batch_searches_count"]) - alone), 2)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--images", "--pictures", type=int, default=300)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
