"""Copy a collection to a Qdrant server, which many processes can search at the same time.

    docker compose -f examples/docker-compose.yml up -d
    python examples/03_server.py [URL] [INDEX]

Without a URL, the in-memory engine of qdrant-client is used instead of a server. Images are copied
from the collection of 01_ingest.py; nothing is encoded again.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from edje_qdrant import EDJEModel, ImageCollection, TwoStageRetriever
from edje_qdrant.maintenance import copy_collection

TEXTS = ("a red star", "a blue ring", "a white moon")


def main(url: str | None = None, index: str = "example-index") -> None:
    """Copy, then search with several texts at once."""
    location: Any = url or ":memory:"
    with ImageCollection.open(index, "images") as source:
        # On a server, tokens are stored in the points' payload by default.
        target = ImageCollection.open_or_create(
            location, "images", source.contract, codec=source.codec, tokens="payload"
        )
        report = copy_collection(source, target)  # images that are there already are skipped
        print(f"{report.copied} images copied to {target.location}, {report.skipped} there already")
    with TwoStageRetriever(target, EDJEModel.from_pretrained("demo")) as retriever:
        results = asyncio.run(search(retriever))
    for text, paths in zip(TEXTS, results, strict=True):
        print(text, "->", ", ".join(paths))


async def search(retriever: TwoStageRetriever) -> list[list[str]]:
    """Search for all texts while the event loop goes on."""
    results = await asyncio.gather(*(retriever.asearch(text, top_k=2) for text in TEXTS))
    return [[hit.payload["path"] for hit in result] for result in results]


if __name__ == "__main__":
    main(*sys.argv[1:])
