"""Measure two ways to read from a Qdrant server faster: how answers are parsed, and slices.

    OMP_NUM_THREADS=1 python benchmarks/server_reads.py --out docs/results/server-reads.json

Parsing: calls of qdrant-client, whose answers are made beforehand and come at once, so that only
the client's own work is measured: as in qdrant-client 1.19 (`json`), as in 1.20 with what this
package installs, and as in 1.20 with orjson. Ratios to the first, medians of one run.

Slices: `verify` and `export_collection` of a collection whose tokens are in the payload, on the
stand-in of the tests in a process of its own. It has the pages ready, and waits before each answer
for the time that a server and a network would take. All points are read page by page, in larger
pages, or in slices by as many threads, whose points are put in order again. Ratios of the times of
each round to plain pages, medians over the rounds.
"""

from __future__ import annotations

import argparse
import heapq
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import types
import uuid
from bisect import bisect_left
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pydantic_core
from demo_world import conditions
from qdrant_client import QdrantClient, models
from qdrant_client.common import response_parsing
from qdrant_client.http import api_client

from edje_qdrant import ImageCollection, ImageEncoding, TokenContract
from edje_qdrant.index.filters.match import compile_filter
from edje_qdrant.index.index import VectorIndex
from edje_qdrant.maintenance import export_collection, verify
from edje_qdrant.tokens.codecs import codec_for
from edje_qdrant.types import Point

NUM_TOKENS, TOKEN_DIM, EMBEDDING_DIM = 64, 384, 256
TESTS = Path(__file__).parent.parent / "tests" / "index"


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--delays", type=float, nargs="+", default=[2, 5, 10, 30], help="in ms")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        _serve(options.serve)
        return
    parsing = _parsing(rounds=31)
    scrolls = [
        row
        for codec in ("pq32", "float16")
        for row in _scrolls(codec, options.images, options.rounds, options.delays)
    ]
    result = {"parsing": parsing, "images": options.images, "scrolls": scrolls, **conditions()}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


# Parsing.


def _parsing(rounds: int) -> list[dict[str, Any]]:
    client = QdrantClient(url="http://localhost:1", check_compatibility=False)
    answer = [b""]
    client.http.client.add_middleware(lambda *_: httpx.Response(200, content=answer[0]))
    rng = np.random.default_rng(0)
    query = models.QueryRequest(query=rng.standard_normal(1024).tolist(), with_payload=True)
    kinds: dict[str, tuple[Callable[[], object], Any]] = {
        "search, 100 candidates": (
            lambda: client.query_batch_points("images", [query]),
            [{"points": [_record(n, rng, score=True) for n in range(100)]}],
        ),
        "tokens of 100, `pq32`": (
            lambda: client.retrieve("images", [1]), [_record(n, rng, 2048) for n in range(100)],
        ),
        "tokens of 100, `float16`": (
            lambda: client.retrieve("images", [1]), [_record(n, rng, 49152) for n in range(100)],
        ),
        "a page of 256 with vectors of 1,024": (
            lambda: client.scroll("images"),
            {"points": [_record(n, rng, dim=1024) for n in range(256)]},
        ),
    }  # fmt: skip
    rows = []
    for kind, (call, result) in kinds.items():
        answer[0] = json.dumps({"result": result, "status": "ok", "time": 0.0}).encode()
        ms = _parse_times(call, rounds)
        rows.append({
            "kind": kind, "bytes": len(answer[0]), "json_ms": round(ms["json"], 2),
            **{way: round(ms["json"] / each, 2) for way, each in ms.items() if way != "json"},
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def _parse_times(call: Callable[[], object], rounds: int) -> dict[str, float]:
    ways: dict[str, tuple[Any, Any]] = {
        "json": (lambda b, t: response_parsing.parse_as_type(json.loads(b), t), None),
        "1.20": (response_parsing.parse_response, pydantic_core.from_json),
        "1.20 with orjson": (response_parsing.parse_response, orjson.loads),
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    parse, loads = api_client.parse_response, response_parsing._loads
    for _ in range(rounds):
        for way, (api_client.parse_response, response_parsing._loads) in ways.items():
            began = time.perf_counter()
            call()
            taken[way].append(1000 * (time.perf_counter() - began))
    api_client.parse_response, response_parsing._loads = parse, loads
    return {way: statistics.median(each[1:]) for way, each in taken.items()}


def _record(
    number: int,
    rng: np.random.Generator,
    token_bytes: int = 0,
    dim: int = 0,
    *,
    score: bool = False,
) -> dict[str, Any]:
    tokens = {"tokens": "A" * (token_bytes * 4 // 3)} if token_bytes else {}
    record: dict[str, Any] = {
        "id": str(uuid.UUID(int=number + 1)),
        "payload": {
            "path": f"/pictures/2024/{number}.jpg", "width": 640, "height": 480,
            "file_size": 123456, "taken_at": "2024-01-01T00:00:00Z", "camera": "X100",
            "_edje": {"codec": "pq32", "checksum": "0123456789abcdef", **tokens},
        },
    }  # fmt: skip
    if dim:
        record["vector"] = rng.standard_normal(dim).astype(np.float32).tolist()
    return {**record, "score": 0.5, "version": 1} if score else record


# Slices.


def _scrolls(codec: str, images: int, rounds: int, delays: list[float]) -> list[dict[str, Any]]:
    plain = VectorIndex.scroll
    ways = {
        "pages": plain, "pages of 1,024": _larger(plain, 4), "2 slices": _sliced(2),
        "4 slices": _sliced(4),
    }  # fmt: skip
    rows = []
    with _server() as url, tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "images.tar"
        with _filled(url, codec, images) as collection:

            def export() -> None:
                archive.unlink(missing_ok=True)
                export_collection(collection, archive)

            jobs = {"verify": lambda: verify(collection), "export": export}
            for delay in delays:
                httpx.post(f"{url}/delay", json={"seconds": delay / 1000})
                for job, run in jobs.items():
                    taken: dict[str, list[float]] = {way: [] for way in ways}
                    for _ in range(rounds + 1):
                        for way, VectorIndex.scroll in ways.items():
                            began = time.perf_counter()
                            run()
                            taken[way].append(time.perf_counter() - began)
                    ratios = {
                        way: round(_ratio(taken["pages"], own), 2)
                        for way, own in taken.items()
                        if way != "pages"
                    }
                    rows.append({"job": job, "codec": codec, "delay_ms": delay, **ratios})
                    print(rows[-1], flush=True)
    VectorIndex.scroll = plain
    return rows


def _ratio(ones: list[float], others: list[float]) -> float:
    """Return the median of the ratios of all rounds but the first."""
    rounds = zip(ones[1:], others[1:], strict=True)
    return statistics.median(one / other for one, other in rounds)


def _larger(plain: Any, times: int) -> Any:
    def scroll(index: VectorIndex, *, batch_size: int = 256, **more: Any) -> Iterator[list[Point]]:
        for page in plain(index, batch_size=times * batch_size, **more):
            for start in range(0, len(page), batch_size):
                yield page[start : start + batch_size]

    return scroll


def _sliced(total: int) -> Any:
    def scroll(
        index: VectorIndex, *, batch_size: int = 256, payload: bool = True, tokens: bool = False,
        vectors: bool = False, filter: Any = None,
    ) -> Iterator[list[Point]]:  # fmt: skip
        assert filter is None
        what = {"payload": payload, "tokens": tokens, "vectors": vectors}

        def points(number: int, pool: ThreadPoolExecutor) -> Iterator[Point]:
            part = models.Slice(total=total, index=number)
            chosen = models.Filter(must=[models.SliceCondition(slice=part)])

            def ask(start: Any) -> Future[Any]:
                return pool.submit(index._backend.page, start, batch_size, chosen, **what)

            def rest(asked: Future[Any]) -> Iterator[Point]:
                start: Any = True
                while start is not None:
                    page, start = asked.result()
                    if start is not None:
                        asked = ask(start)  # the next page comes while this one is used
                    yield from page

            return rest(ask(None))

        with ThreadPoolExecutor(total) as pool:
            slices = [points(number, pool) for number in range(total)]
            page = []
            for point in heapq.merge(*slices, key=lambda point: point.id):
                page.append(point)
                if len(page) == batch_size:
                    yield page
                    page = []
            if page:
                yield page

    return scroll


def _filled(url: str, name: str, images: int) -> ImageCollection:
    rng = np.random.default_rng(0)
    codec = codec_for(name, NUM_TOKENS, TOKEN_DIM)
    if not codec.fitted:
        codec = codec.fit(_tokens(rng, 64))
    contract = TokenContract(
        "random", "0", "0", EMBEDDING_DIM, "0", num_tokens=NUM_TOKENS, token_dim=TOKEN_DIM
    )
    collection = ImageCollection.create(url, f"images-{name}", contract, codec=codec)
    for start in range(0, images, 256):
        ids = [str(uuid.uuid5(uuid.NAMESPACE_OID, str(n))) for n in range(start, start + 256)]
        vectors = rng.standard_normal((len(ids), EMBEDDING_DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        payloads = [{"path": f"/pictures/{each}.jpg", "width": 640, "height": 480} for each in ids]
        collection.add(ids, ImageEncoding(vectors, _tokens(rng, len(ids))), payloads)
    return collection


def _tokens(rng: np.random.Generator, count: int) -> Any:
    return rng.standard_normal((count, NUM_TOKENS, TOKEN_DIM)).astype(np.float16)


@contextmanager
def _server() -> Iterator[str]:
    """Run the stand-in in a process of its own; yield its address."""
    command = [sys.executable, __file__, "--serve", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def _serve(port: int) -> None:
    sys.path.insert(0, str(TESTS))
    import index_stand_in

    class Ready:
        """An answer that is text already."""

        def __init__(self, text: str) -> None:
            self.text = text

    def dumps(data: Any) -> str:
        result = data.get("result") if isinstance(data, dict) else None
        return result.text if isinstance(result, Ready) else json.dumps(data)

    index_stand_in.json = types.SimpleNamespace(loads=json.loads, dumps=dumps)

    class StandIn(index_stand_in.StandIn):
        """A stand-in whose pages are made once, and of which each answer takes a time."""

        def __init__(self, port: int) -> None:
            super().__init__(port=port)
            self._stored: dict[str, list[dict[str, Any]]] = {}
            self._ready: dict[str, Ready] = {}

        def respond(self, method: str, path: list[str], body: Any, *rest: Any, **more: Any) -> Any:
            if path == ["delay"]:
                self.delay = body["seconds"]
                return True
            if path[-1] != "scroll":
                return super().respond(method, path, body, *rest, **more)
            key = json.dumps([path, body])
            if key not in self._ready:
                self._ready[key] = Ready(json.dumps(
                    {"result": self._page(path[1], body), "status": "ok", "time": 0.0}
                ))  # fmt: skip
            return self._ready[key]

        def _page(self, name: str, body: Any) -> Any:
            key = json.dumps([name, body.get("filter")])
            if key not in self._stored:
                records, _ = self.client.scroll(
                    name, limit=10**9, with_payload=True, with_vectors=True
                )
                chosen = models.Filter(**(body.get("filter") or {}))
                matches = compile_filter(chosen)
                self._stored[key] = sorted(
                    (
                        index_stand_in._given(r)
                        for r in records
                        if matches(r.payload or {}, str(r.id))
                    ),
                    key=lambda record: record["id"],
                )
            rows, size = self._stored[key], body["limit"]
            first = bisect_left([row["id"] for row in rows], body.get("offset") or "")
            page = rows[first : first + size]
            if not body.get("with_vector"):
                page = [{k: v for k, v in row.items() if k != "vector"} for row in page]
            left = rows[first + size :]
            return {"points": page, "next_page_offset": left[0]["id"] if left else None}

    with StandIn(port) as server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
