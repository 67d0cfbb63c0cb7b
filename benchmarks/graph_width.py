"""Measure the recall of searches of the graph at several widths, texts searching drawn scenes.

    OMP_NUM_THREADS=1 python benchmarks/graph_width.py --out docs/results/graph-width.json

Drawn scenes and their captions, with the bundled model, in the embedded engine's graph with the
settings of this package, which is the graph of a server. For each width (`hnsw_ef`): the share of
the true best that a search finds. A search keeps as many candidates as it wants at least, whatever
the width.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import qdrant_edge as edge
from demo_world import conditions
from numpy.typing import NDArray
from quantization import embeddings

from edje_qdrant.index import hnsw
from edje_qdrant.index.ranking import SLACK

WANTED = (20, 100)
WIDTHS = (32, 64, 128, 192, 256, 384, 512)


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--queries", type=int, default=300)
    options = parser.parse_args()
    vectors, queries = embeddings(options.images, options.queries)
    best = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        shard = _graph(folder, vectors)
        for width in WIDTHS:
            found = {f"best {n}": _recall(shard, queries, best[:, :n], width) for n in WANTED}
            rows.append({"width": width, **found})
            print(rows[-1])
        shard.close()
    result = {
        "images": len(vectors), "queries": len(queries), "dim": vectors.shape[1],
        "rows": rows, **conditions(),
    }  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def _graph(folder: str, vectors: NDArray[np.float32]) -> edge.EdgeShard:
    graph = edge.HnswIndexConfig(
        m=hnsw.LINKS, ef_construct=hnsw.BUILD_WIDTH, full_scan_threshold=10
    )
    config = edge.EdgeConfig(
        vectors=edge.EdgeVectorParams(vectors.shape[1], edge.Distance.Cosine),
        hnsw_config=graph,
        optimizers=edge.EdgeOptimizersConfig(indexing_threshold=1),
    )
    shard = edge.EdgeShard.create(folder, config)
    for start in range(0, len(vectors), 500):
        points = [
            edge.Point(start + n, vector.tolist(), {})
            for n, vector in enumerate(vectors[start : start + 500])
        ]
        shard.update(edge.UpdateOperation.upsert_points(points))
    shard.optimize()
    return shard


def _recall(
    shard: edge.EdgeShard, queries: NDArray[np.float32], best: NDArray[np.int64], width: int
) -> float:
    wanted = best.shape[1]
    hits = []
    for query, right in zip(queries, best, strict=True):
        request = edge.QueryRequest(
            limit=wanted + SLACK,
            query=edge.Query.Nearest(query.tolist()),
            params=edge.SearchParams(hnsw_ef=width),
        )
        found = [int(point.id) for point in shard.query(request)][:wanted]
        hits.append(len({*found} & {*right.tolist()}) / wanted)
    return round(float(np.mean(hits)), 4)


if __name__ == "__main__":
    main()
