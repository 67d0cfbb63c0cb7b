"""Ingest with Ray: several workers, on one machine or on a cluster, fill a Qdrant server.

    pip install 'edje-qdrant[ray]'
    docker compose -f examples/docker-compose.yml up -d
    python examples/08_ray.py [URL] [IMAGES]

IMAGES is a path that Ray can read on each machine: a shared folder, or s3://bucket/photos. Without
it, sixty images are drawn. After a crash, run it again: only missing images are added.
"""

from __future__ import annotations

import sys

import ray.data

from edje_qdrant import QdrantSettings, TwoStageRetriever
from edje_qdrant.integrations.ray import ingest_dataset


def main(url: str = "http://localhost:6333", pictures: str | None = None) -> None:
    """Ingest, say what happened, and search."""
    if pictures is None:
        from edje_qdrant.demo.annotated import write_scenes

        pictures = str(write_scenes("example-scenes", count=60).parent / "pictures")
    files = ray.data.read_binary_files(pictures, include_paths=True)
    report = ingest_dataset(
        files,
        url,
        "ray-pictures",
        "demo",  # a name, or a folder that every machine has
        concurrency=2,
        num_gpus=0,  # 1, to encode on a GPU for each worker
        create=True,
        codec="int8",
        qdrant=QdrantSettings(shards=2, payload_on_disk=True),
    )
    print(f"{report.added} added, {report.skipped} there already, {len(report.failed)} unreadable")
    with TwoStageRetriever.open(url, "ray-pictures") as retriever:
        for hit in retriever.search("a red star above a blue ring", top_k=3):
            print(f"#{hit.rank} (was #{hit.retrieval_rank})  {hit.payload['path']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
