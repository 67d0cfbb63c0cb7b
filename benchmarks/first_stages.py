"""Compare the embedded first stages: Qdrant Edge and faiss.

    python benchmarks/first_stages.py [--sizes 10000 100000] [--out docs/results/first_stages.json]

Vectors are synthetic, of 256 dimensions, in clusters of 100. `near` queries are drawn around the
same cluster centers; `apart` queries have random directions, as texts and images lie apart in an
encoder's space. Times are processor times of all threads, so that other work on the machine and
waiting for the disk do not count:

write      Upsert all points.
optimize   Build the structures that searches use.
open       Open the index again.
one        Search with one query for 100 points.
batch      Search with 64 queries for 100 points each.
filter     Search the tenth of the points that match a payload field without a payload index.
again      The same filter with other queries.

Search times are medians over different queries. Recall is the share of the true top 100 that was
found. Run it with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
import uuid
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.index import Engine, VectorIndex, create_embedded, open_embedded
from edje_qdrant.types import Point

DIM, LIMIT, BATCH, PAGE = 256, 100, 64, 1000
SINGLES, BATCHES = 30, 3
Vectors = NDArray[np.float32]


def main() -> None:
    """Measure, and print and write the results."""
    options = _options()
    begun = time.perf_counter()
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        vectors = _unit(_clustered(size, size // 100, seed=0))
        queries = {
            "near": _unit(_clustered(BATCH * BATCHES, size // 100, seed=1)),
            "apart": _unit(np.random.default_rng(2).standard_normal((BATCH * BATCHES, DIM))),
        }
        exact = {name: _top(given, vectors) for name, given in queries.items()}
        for engine in get_args(Engine):
            with tempfile.TemporaryDirectory() as folder:
                row = _measure(Path(folder) / "index", engine, vectors, queries, exact)
            base = next((r for r in rows if r["size"] == size), row)
            row["of_edge"] = {
                key: round(row[key] / base[key], 3) for key in row if key.endswith(("_s", "_ms"))
            }
            rows.append(row)
            print(_line(row), flush=True)
            if options.out:
                _write(options.out, rows, time.perf_counter() - begun)


def _write(path: Path, rows: list[dict[str, Any]], seconds: float) -> None:
    report = {
        "dim": DIM,
        "limit": LIMIT,
        "vectors": "synthetic, clustered",
        "times": "processor time of all threads",
        "threads": os.environ.get("OMP_NUM_THREADS", "as many as there are cores"),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores with other "
        "work on them, CPU",
        "seconds": round(seconds),
        "rows": rows,
    }
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _measure(
    folder: Path,
    engine: str,
    vectors: Vectors,
    queries: dict[str, Vectors],
    exact: dict[str, list[set[str]]],
) -> dict[str, Any]:
    index = create_embedded(folder, DIM, {}, cast("Engine", engine))
    write = _seconds(lambda: _fill(index, vectors))
    optimize = _seconds(index.optimize)
    index.close()
    nbytes = sum(512 * path.stat().st_blocks for path in folder.rglob("*"))
    begun = time.process_time()
    index = open_embedded(folder)
    opened = time.process_time() - begun
    apart = queries["apart"]
    index.nearest(apart[:1], LIMIT)
    singles = [_seconds(lambda n=n: index.nearest(apart[n : n + 1], LIMIT)) for n in range(SINGLES)]
    batches = [
        _seconds(lambda n=n: index.nearest(apart[n : n + BATCH], LIMIT))
        for n in range(0, BATCH * BATCHES, BATCH)
    ]
    chosen = {"album": "album 3"}
    first = _seconds(lambda: index.nearest(apart[:1], LIMIT, filter=chosen))
    again = [
        _seconds(lambda n=n: index.nearest(apart[n : n + 1], LIMIT, filter=chosen))
        for n in range(1, 6)
    ]
    row = {
        "size": len(vectors),
        "engine": engine,
        "write_s": write,
        "optimize_s": optimize,
        "open_s": opened,
        "one_ms": 1000 * float(np.median(singles)),
        "batch_ms": 1000 * float(np.median(batches)),
        "filter_ms": 1000 * first,
        "filter_again_ms": 1000 * float(np.median(again)),
        "bytes": nbytes,
    }
    row = {key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()}
    for name, given in queries.items():
        hits = [len({c.image_id for c in found} & best) for found, best in
                zip(index.nearest(given, LIMIT), exact[name], strict=True)]  # fmt: skip
        row[f"recall_{name}"] = round(sum(hits) / (LIMIT * len(given)), 4)
    index.close()
    return row


def _fill(index: VectorIndex, vectors: Vectors) -> None:
    for start in range(0, len(vectors), PAGE):
        index.upsert(
            [
                Point(
                    _id(n), vectors[n], {"path": f"pictures/{n:08}.jpg", "album": f"album {n % 10}"}
                )
                for n in range(start, min(start + PAGE, len(vectors)))
            ]
        )
    index.flush()


def _top(queries: Vectors, vectors: Vectors) -> list[set[str]]:
    best = np.argpartition(-(queries @ vectors.T), LIMIT, axis=1)[:, :LIMIT]
    return [{_id(int(n)) for n in row} for row in best]


def _clustered(count: int, centers: int, seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    middles = np.random.default_rng(1000).standard_normal((centers, DIM))
    noise: NDArray[np.float64] = 0.7 * rng.standard_normal((count, DIM))
    noise += middles[rng.integers(0, centers, count)]
    return noise


def _unit(vectors: NDArray[np.float64]) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _id(number: int) -> str:
    return str(uuid.UUID(int=number + 1))


def _seconds(action: Callable[[], object]) -> float:
    begun = time.process_time()
    action()
    return time.process_time() - begun


def _line(row: dict[str, Any]) -> str:
    times = ", ".join(
        f"{key.rpartition('_')[0]} {row[key]:.4g} {key.rpartition('_')[2]} (x{ratio:.3g})"
        for key, ratio in row["of_edge"].items()
    )
    return (
        f"{row['size']:>7} {row['engine']:<10} {times}; {row['bytes'] / 1e6:.0f} MB; "
        f"recall@{LIMIT} near {row['recall_near']:.4f}, apart {row['recall_apart']:.4f}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
