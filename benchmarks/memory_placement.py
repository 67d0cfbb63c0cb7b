"""Measure the memory that an index takes with its parts cold, cached or pinned.

    OMP_NUM_THREADS=1 python benchmarks/memory_placement.py --out docs/results/memory-placement.json

Random vectors with int8 quantization, a graph, and payloads of 2 kB, in the embedded engine, which
stores them as a server does. A process for each placement opens the index and then searches, with
payloads and rescoring. Counted is what this adds to the process: memory of its own, which cannot be
taken from it, and mapped pages of files, which the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge

DIM, PAYLOAD_BYTES = 1024, 1500
PLACEMENTS: dict[str, dict[str, str]] = {
    "the defaults": {},
    "vectors cold": {"vectors": "cold"},
    "vectors cold, quantized pinned": {"vectors": "cold", "quantized": "pinned"},
    "vectors, quantized and graph cold": {"vectors": "cold", "quantized": "cold", "graph": "cold"},
    "graph pinned": {"graph": "pinned"},
    "payload cached": {"payload": "cached"},
}


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(_read(options.read, options.searches)))
        return
    from demo_world import conditions  # loads torch, which the measured processes do without

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        _build(base, options.images)
        for name, placement in PLACEMENTS.items():
            placed = Path(folder, "placed")
            shutil.copytree(base, placed)
            shard = edge.EdgeShard.load(str(placed), _config(placement))
            shard.optimize()  # writes the parts again that are placed otherwise
            shard.close()
            command = [
                sys.executable, __file__, "--read", str(placed), "--searches",
                str(options.searches),
            ]  # fmt: skip
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append({"placement": name, **json.loads(answer)})
            print(rows[-1], flush=True)
            shutil.rmtree(placed)
    vectors = options.images * DIM * 4 / 2**20
    result = {
        "images": options.images, "dim": DIM, "searches": options.searches,
        "vectors_mb": round(vectors), "quantized_mb": round(vectors / 4),
        "payload_mb": round(options.images * PAYLOAD_BYTES * 4 / 3 / 2**20), "rows": rows,
        **conditions(),
    }  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _config(placement: dict[str, str]) -> edge.EdgeConfig:
    memory = {part: getattr(edge.Memory, name.capitalize()) for part, name in placement.items()}
    return edge.EdgeConfig(
        vectors=edge.EdgeVectorParams(DIM, edge.Distance.Cosine, memory=memory.get("vectors")),
        hnsw_config=edge.HnswIndexConfig(
            m=32, ef_construct=100, full_scan_threshold=10, memory=memory.get("graph")
        ),
        quantization_config=edge.ScalarQuantizationConfig(
            edge.ScalarType.Int8, memory=memory.get("quantized")
        ),
        payload_memory=memory.get("payload"),
        # With the default threshold, nothing is quantized.
        optimizers=edge.EdgeOptimizersConfig(indexing_threshold=10, default_segment_number=1),
    )


def _build(folder: Path, images: int) -> None:
    rng = np.random.default_rng(0)
    shard = edge.EdgeShard.create(str(folder), _config({}))
    for start in range(0, images, 500):
        vectors = rng.standard_normal((500, DIM)).astype(np.float32)
        points = [
            edge.Point(
                start + n,
                vector.tolist(),
                {"t": base64.b64encode(rng.bytes(PAYLOAD_BYTES)).decode()},
            )
            for n, vector in enumerate(vectors)
        ]
        shard.update(edge.UpdateOperation.upsert_points(points))
    shard.optimize()
    shard.close()


def _read(folder: str, searches: int) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    queries = rng.standard_normal((searches, DIM)).astype(np.float32).tolist()
    params = edge.SearchParams(
        hnsw_ef=128, quantization=edge.QuantizationSearchParams(rescore=True, oversampling=2.0)
    )
    before = _resident()
    shard = edge.EdgeShard.load(folder)
    opened = _resident()
    for query in queries:
        shard.query(
            edge.QueryRequest(
                limit=100, query=edge.Query.Nearest(query), with_payload=True, params=params
            )
        )
    searched = _resident()
    return {
        f"{when}_{kind}_mb": round(now[kind] - before[kind])
        for when, now in (("opened", opened), ("searched", searched))
        for kind in before
    }


def _resident() -> dict[str, float]:
    """Return the megabytes of this process: its own memory, and pages of files (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    kilobytes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return {
        kind: int(kilobytes[name]) / 1024
        for kind, name in (("own", "RssAnon"), ("files", "RssFile"))
    }


if __name__ == "__main__":
    main()
