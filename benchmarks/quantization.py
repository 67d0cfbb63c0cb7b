"""Measure the recall of searches in quantized vectors, with texts as queries for drawn scenes.

    OMP_NUM_THREADS=1 python benchmarks/quantization.py --out docs/results/quantization.json

Drawn scenes and their captions, with the bundled model, in the embedded engine, which quantizes
vectors with the same code as a server does. For each quantization: the share of the true best 100
that a search finds with the quantized vectors only, and after rescoring different multiples of 100
candidates with the full vectors. All vectors are scanned, so that only quantization causes errors.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge
from demo_world import BATCH, conditions
from numpy.typing import NDArray

from edje_qdrant import EDJEModel
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.run import scene_captions
from edje_qdrant.demo.scenes import draw_scenes

WANTED = 100
OVERSAMPLING = (1.0, 2.0, 4.0)
CONFIGS = {
    "int8": edge.ScalarQuantizationConfig(edge.ScalarType.Int8),
    "product-x4": edge.ProductQuantizationConfig(edge.CompressionRatio.X4),
    "product-x16": edge.ProductQuantizationConfig(edge.CompressionRatio.X16),
    "product-x64": edge.ProductQuantizationConfig(edge.CompressionRatio.X64),
    "binary": edge.BinaryQuantizationConfig(),
    "turbo8": edge.TurboQuantQuantizationConfig(bits=edge.TurboQuantBitSize.Bits8),
    "turbo4": edge.TurboQuantQuantizationConfig(bits=edge.TurboQuantBitSize.Bits4),
    "turbo2": edge.TurboQuantQuantizationConfig(bits=edge.TurboQuantBitSize.Bits2),
    "turbo1.5": edge.TurboQuantQuantizationConfig(bits=edge.TurboQuantBitSize.Bits1_5),
    "turbo1": edge.TurboQuantQuantizationConfig(bits=edge.TurboQuantBitSize.Bits1),
}


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--images", "--pictures", type=int, default=4000)
    parser.add_argument("--queries", type=int, default=300)
    options = parser.parse_args()
    vectors, queries = embeddings(options.images, options.queries)
    best = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :WANTED]
    rows = [{"quantization": name, **_recalls(name, vectors, queries, best)} for name in CONFIGS]
    result = {
        "pictures": len(vectors), "queries": len(queries), "dim": vectors.shape[1],
        "wanted": WANTED, "rows": rows, **conditions(),
    }  # fmt: skip
    for row in rows:
        print(row)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def embeddings(images: int, queries: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return `(images, d)` embeddings of scenes and `(queries, d)` of their captions."""
    model = EDJEModel.from_pretrained("demo")
    scenes = list(draw_scenes("test", 0, images))
    parts = [scenes[start : start + BATCH] for start in range(0, images, BATCH)]
    vectors = [model.encode_images([draw(scene) for scene in part]).embeddings for part in parts]
    captions = [caption.text for caption in scene_captions(scenes[:queries], 0)]
    return np.concatenate(vectors), model.encode_texts(captions[:queries])


def _recalls(
    name: str, vectors: NDArray[np.float32], queries: NDArray[np.float32], best: NDArray[np.int64]
) -> dict[str, Any]:
    params = edge.EdgeVectorParams(
        vectors.shape[1], edge.Distance.Cosine, quantization_config=CONFIGS[name]
    )
    config = edge.EdgeConfig(
        vectors=params,
        hnsw_config=edge.HnswIndexConfig(m=32, ef_construct=200, full_scan_threshold=1_000_000),
        # With the default threshold, nothing is quantized.
        optimizers=edge.EdgeOptimizersConfig(indexing_threshold=1),
    )
    with tempfile.TemporaryDirectory() as folder:
        shard = edge.EdgeShard.create(folder, config)
        for start in range(0, len(vectors), 500):
            points = [
                edge.Point(start + n, vector.tolist(), {})
                for n, vector in enumerate(vectors[start : start + 500])
            ]
            shard.update(edge.UpdateOperation.upsert_points(points))
        shard.optimize()
        found = {"alone": _recall(shard, queries, best, False, None)}
        for more in OVERSAMPLING:
            found[f"rescored x{more:g}"] = _recall(shard, queries, best, True, more)
        shard.close()
    return found


def _recall(
    shard: edge.EdgeShard,
    queries: NDArray[np.float32],
    best: NDArray[np.int64],
    rescore: bool,
    oversampling: float | None,
) -> float:
    params = edge.SearchParams(
        hnsw_ef=512,
        quantization=edge.QuantizationSearchParams(rescore=rescore, oversampling=oversampling),
    )
    hits = []
    for query, right in zip(queries, best, strict=True):
        request = edge.QueryRequest(
            limit=WANTED, query=edge.Query.Nearest(query.tolist()), params=params
        )
        found = {int(point.id) for point in shard.query(request)}
        hits.append(len(found & set(right.tolist())) / WANTED)
    return round(float(np.mean(hits)), 4)


if __name__ == "__main__":
    main()
